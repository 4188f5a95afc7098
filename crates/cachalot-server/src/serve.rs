//! Listening, connections, and the way down.
//!
//! Owns the runtime. A connection that sends its head too slowly, or reads nothing for too long, is closed; when the server
//! is told to stop it answers no more requests than what its health asks for, lets what runs finish for a while, and then
//! cuts it off.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::app::{App, router};
use crate::backend::{Backend, ModelCard};
use crate::gate::Peer;
use crate::options::{Limits, ServerOptions};

/// How long the head of a request may take.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long responses may take to leave after the last answer has ended.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address that others can reach, without a key.
    #[error(
        "{address} can be reached by others: give keys (--api-key-file FILE), or say --open if everybody may use the model"
    )]
    Unprotected {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The system gives no threads.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// A server that listens.
pub struct Server {
    runtime: Runtime,
    listener: TcpListener,
    app: Arc<App>,
    address: SocketAddr,
}

impl Server {
    /// Starts to listen; nothing is answered before [`Server::run`].
    ///
    /// # Errors
    /// If the address needs a key and there is none, or cannot be had.
    pub fn bind(card: ModelCard, backend: Arc<dyn Backend>, options: ServerOptions) -> Result<Self, ServeError> {
        let address = options.address;
        if !address.ip().is_loopback() && options.keys.is_empty() && !options.open {
            return Err(ServeError::Unprotected { address });
        }
        // Two threads are plenty: they only move bytes.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        let listen = |error| ServeError::Listen { address, error };
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let app = Arc::new(App::new(card, backend, options));
        Ok(Self { runtime, listener, app, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is true or its sender is gone, and then until everything has ended. A second `true` (any change)
    /// does not wait any longer.
    pub fn run(self, stop: watch::Receiver<bool>) {
        let Self { runtime, listener, app, .. } = self;
        runtime.block_on(serve(listener, app, stop));
        // Threads that still write a prompt for a client that is gone are not waited for.
        runtime.shutdown_background();
    }

    /// Serves until the program is told to end: SIGINT or SIGTERM. A second one does not wait for answers.
    ///
    /// # Errors
    /// If the system does not let the program listen for signals.
    pub fn run_until_told(self) -> Result<(), ServeError> {
        let (told, stop) = watch::channel(false);
        let guard = self.runtime.enter();
        let signals = signals().map_err(ServeError::Runtime)?;
        self.runtime.spawn(tell(signals, told));
        drop(guard);
        self.run(stop);
        Ok(())
    }
}

#[cfg(unix)]
type Signals = (tokio::signal::unix::Signal, tokio::signal::unix::Signal);

#[cfg(unix)]
fn signals() -> std::io::Result<Signals> {
    use tokio::signal::unix::{SignalKind, signal};
    Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
}

#[cfg(unix)]
async fn tell((mut interrupt, mut terminate): Signals, told: watch::Sender<bool>) {
    loop {
        let (interrupt, terminate) = (Box::pin(interrupt.recv()), Box::pin(terminate.recv()));
        select(interrupt, terminate).await;
        if told.send(true).is_err() {
            return;
        }
    }
}

#[cfg(not(unix))]
type Signals = ();

#[cfg(not(unix))]
fn signals() -> std::io::Result<Signals> {
    Ok(())
}

#[cfg(not(unix))]
async fn tell((): Signals, told: watch::Sender<bool>) {
    while tokio::signal::ctrl_c().await.is_ok() && told.send(true).is_ok() {}
}

async fn serve(listener: TcpListener, app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let mut accepting = Box::pin(accept(listener, &app, &graceful));
    let stopped = Box::pin(async {
        // An error means that nobody can tell any more.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    select(&mut accepting, stopped).await;
    // Until the last answer has ended, whoever asks hears that the server stops.
    select(accepting, Box::pin(finish(&app, stop))).await;
    // The last events are on their way.
    if timeout(LEAVE_TIME, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

/// Takes connections, for ever.
async fn accept(listener: TcpListener, app: &Arc<App>, graceful: &GracefulShutdown) {
    let service = TowerToHyperService::new(router(Arc::clone(app)));
    let connections = Arc::new(Semaphore::new(app.options.limits.connections));
    loop {
        // At the limit, further clients wait in the system's queue.
        let room = Arc::clone(&connections).acquire_owned().await;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, or a client that went away at once: neither is a reason to stop.
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = graceful.watch(connection(app.options.limits, stream, peer, service.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, %peer, "a connection ended early");
            }
            drop(room);
        });
    }
}

type Connection<S> = http1::Connection<TokioIo<Pin<Box<TimeoutStream<TcpStream>>>>, S>;

/// One connection.
fn connection(
    limits: Limits,
    stream: TcpStream,
    peer: SocketAddr,
    service: TowerToHyperService<axum::Router>,
) -> Connection<
    impl Service<
        hyper::Request<Incoming>,
        Response = axum::response::Response,
        Error = std::convert::Infallible,
        Future: Send,
    >,
> {
    // Small events should leave at once; if that cannot be had they leave a little later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.unread_time));
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        service.call(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        // Beyond these a request is refused by its connection, which cannot say why: the gate has the limits.
        .max_buf_size(2 * limits.head_bytes.max(8 << 10))
        .max_headers(2 * limits.head_fields)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
}

/// Lets what runs finish, then cuts it off.
async fn finish(app: &Arc<App>, mut stop: watch::Receiver<bool>) {
    app.set_stopping();
    let grace = app.options.grace;
    tracing::info!(grace_seconds = grace.as_secs(), "stopping");
    let backend = Arc::clone(&app.backend);
    let finished = tokio::task::spawn_blocking(move || backend.stop(grace));
    stop.mark_unchanged();
    let again = Box::pin(async {
        if stop.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    if let Either::Right(_) = select(finished, again).await {
        tracing::warn!("told to stop again: answers are cut off");
        let backend = Arc::clone(&app.backend);
        let _ = tokio::task::spawn_blocking(move || backend.stop(Duration::ZERO)).await;
    }
}
