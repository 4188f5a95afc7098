//! What whoever runs the server decides, with what holds otherwise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use cachalot_text::constraint::MAX_TOOLS;

use crate::gate::Keys;

/// The port where none is given.
pub const DEFAULT_PORT: u16 = 8080;

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Address to listen at.
    pub address: SocketAddr,
    /// Keys of which a client must bring one; any client is let in if there are none.
    pub keys: Keys,
    /// Whether another address than the machine's own needs no key.
    pub open: bool,
    /// Names that the server is reached by, besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Origins of pages elsewhere that may ask.
    pub allowed_origins: Vec<String>,
    /// How often those who wait hear that the server is still there.
    pub keep_alive: Duration,
    /// How long what runs may go on after the server was told to stop.
    pub grace: Duration,
    /// How long an answer may take from its request on.
    pub request_timeout: Option<Duration>,
    /// Whether prompts are written to the log.
    pub log_prompts: bool,
    /// How much is taken in and kept.
    pub limits: Limits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT),
            keys: Keys::default(),
            open: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            keep_alive: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            request_timeout: None,
            log_prompts: false,
            limits: Limits::default(),
        }
    }
}

/// How much is taken in and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of the bodies of all requests that are being read and converted.
    pub bodies_bytes: usize,
    /// How long a body may take to arrive, and how long a request may wait until there is room for its body.
    pub body_time: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Fields of a request's head.
    pub head_fields: usize,
    /// Messages, their blocks, or input items of a request.
    pub messages: usize,
    /// Tools of a request.
    pub tools: usize,
    /// Images of a request.
    pub images: usize,
    /// Bytes of an image.
    pub image_bytes: usize,
    /// Prompts of a completion request.
    pub prompts: usize,
    /// Log-probabilities of prompt tokens that a completion request may ask for, alternatives included.
    pub prompt_logprobs: usize,
    /// Connections at once.
    pub connections: usize,
    /// Events that wait for a client that reads slowly; then its answer is cut off.
    pub unread_events: usize,
    /// How long a client may read nothing at all while there is something for it.
    pub unread_time: Duration,
    /// Bytes of responses kept for `previous_response_id`; the oldest are dropped first.
    pub stored_bytes: usize,
    /// Tokens of turns kept for replay; the oldest are dropped first.
    pub replay_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            bodies_bytes: 128 << 20,
            body_time: Duration::from_secs(60),
            head_bytes: 64 << 10,
            head_fields: 100,
            messages: 20_000,
            tools: MAX_TOOLS,
            images: 64,
            image_bytes: 8 << 20,
            prompts: 128,
            prompt_logprobs: 1 << 20,
            connections: 512,
            unread_events: 4_096,
            unread_time: Duration::from_secs(120),
            stored_bytes: 256 << 20,
            replay_tokens: 4 << 20,
        }
    }
}
