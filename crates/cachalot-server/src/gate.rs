//! Who is let in: keys, the `Host` and `Origin` of a request, and what every response says to a browser.
//!
//! A page on another site can make a browser send requests to a server on the same machine, and a name that suddenly
//! points to it (DNS rebinding) can even let it read the answers. Refuses requests that come under a foreign name or from a
//! foreign page. Keys are compared in constant time and never written anywhere.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::Next;
use futures_util::FutureExt;
use rand::Rng;
use rand::distr::Alphanumeric;
use subtle::ConstantTimeEq;
use tracing::Instrument;

use crate::app::App;
use crate::error::{ApiError, Kind, Style};

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Which client a request belongs to, for fairness: its key, or its address.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub u64);

/// The name of a request, for logs.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);

/// Keys, never shown.
#[derive(Clone, Default)]
pub struct Keys(Vec<Box<[u8]>>);

impl Keys {
    /// These keys; empty ones do not count.
    pub fn new<T: AsRef<str>>(keys: impl IntoIterator<Item = T>) -> Self {
        let mut kept = Vec::new();
        for key in keys {
            let key = key.as_ref().trim().as_bytes();
            kept.extend((!key.is_empty()).then(|| key.into()));
        }
        Self(kept)
    }

    /// Whether any key will do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is one of them. Every key is compared, whichever fits.
    fn holds(&self, key: &[u8]) -> bool {
        self.0.iter().fold(subtle::Choice::from(0), |found, known| found | known.ct_eq(key)).into()
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// Checks a request, has it answered, and completes the response.
pub async fn pass(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response<Body> {
    let start = Instant::now();
    let id = RequestId(request_id(request.headers()));
    let style = style(&request);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id = &*id.0);
    let cross_origin = allowed_origin(&app, request.headers());
    let checked = check(&app, &request);
    let mut response = match checked {
        Err(error) => error.response(style),
        Ok(_) if method == Method::OPTIONS => options(),
        Ok(client) => {
            request.extensions_mut().insert(client);
            request.extensions_mut().insert(id.clone());
            // Whatever a bug may have left behind, no other request sees: what they share has its own locks.
            let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
            answered.unwrap_or_else(|_| {
                span.in_scope(|| tracing::error!(path, "a request panicked"));
                ApiError::new(Kind::Internal, "the server failed: this is a bug").response(style)
            })
        }
    };
    finish_head(response.headers_mut(), &id);
    response.headers_mut().extend(cross_origin);
    let status = response.status();
    app.metrics.request(&method, matched(&path), status);
    let milliseconds = start.elapsed().as_millis() as u64;
    span.in_scope(|| tracing::info!(%method, path, status = status.as_u16(), milliseconds, "answered"));
    response
}

/// Paths of the program's own routes stay as they are in metrics; whatever else is asked for is one entry.
fn matched(path: &str) -> &str {
    const KNOWN: [&str; 10] = [
        "/chat/completions",
        "/completions",
        "/responses",
        "/messages",
        "/messages/count_tokens",
        "/models",
        "/health",
        "/metrics",
        "/status",
        "/openapi.json",
    ];
    KNOWN.iter().find(|known| path.ends_with(*known)).copied().unwrap_or("other")
}

/// Whose form errors of this request take.
pub fn style<B>(request: &axum::http::Request<B>) -> Style {
    let path = request.uri().path();
    let anthropic = path.ends_with("/messages") || path.ends_with("/count_tokens");
    if anthropic || request.headers().contains_key("anthropic-version") { Style::Anthropic } else { Style::OpenAi }
}

fn check(app: &App, request: &Request) -> Result<Client, ApiError> {
    let headers = request.headers();
    check_head(app, request)?;
    check_host(app, headers)?;
    check_origin(app, headers)?;
    let key = key(headers);
    let open = request.method() == Method::OPTIONS || is_public(request.uri().path());
    if !app.options.keys.is_empty() && !open {
        match key {
            None => {
                let message = "this server needs a key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`";
                return Err(ApiError::new(Kind::Authentication, message).with_code("invalid_api_key"));
            }
            Some(key) if !app.options.keys.holds(key) => {
                let message = "the key that was sent is not one of this server's";
                return Err(ApiError::new(Kind::Authentication, message).with_code("invalid_api_key"));
            }
            Some(_) => {}
        }
    }
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    // A key that nobody checks says nothing: every program may send another one.
    let known = key.filter(|_| !app.options.keys.is_empty());
    Ok(Client(known.map_or_else(|| HASHER.hash_one(peer), |key| HASHER.hash_one(key))))
}

/// A head must be within limits. What is far beyond them the connection itself refuses, without a word.
fn check_head(app: &App, request: &Request) -> Result<(), ApiError> {
    let (limits, headers) = (&app.options.limits, request.headers());
    let too_large = |found: usize, what: &str, most: usize| {
        let message = format!("the head of the request has {found} {what}; this server takes at most {most}");
        Err(ApiError::new(Kind::HeadTooLarge, message))
    };
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    // A name, a colon, a space, a value, a line end.
    let bytes = headers.iter().fold(target, |sum, (name, value)| sum + name.as_str().len() + value.len() + 4);
    if headers.len() > limits.head_fields {
        return too_large(headers.len(), "fields", limits.head_fields);
    }
    if bytes > limits.head_bytes {
        return too_large(bytes, "bytes", limits.head_bytes);
    }
    Ok(())
}

/// What needs no key: the page, which asks for one, and whether the server is there.
fn is_public(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/favicon.ico") || path.starts_with("/assets/")
}

/// The key that a request brings.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let bytes = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = bytes.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// A request must come under an address, `localhost` or a name that was allowed: no foreign name can point here.
fn check_host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    match host.filter(|_| hosts.next().is_none()).map(host_name) {
        Some(name) if is_own_name(name) || app.options.allowed_hosts.iter().any(|known| is_name(name, known)) => Ok(()),
        _ => Err(ApiError::new(
            Kind::Permission,
            "this server does not answer to the name in the `Host` header; allow it with --allow-host",
        )),
    }
}

/// A request from a page must come from this server's own page or from an origin that was allowed.
fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let own = |origin: &str| {
        let at = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        at.is_some() && at == headers.get(header::HOST).and_then(|host| host.to_str().ok())
    };
    let allowed = |origin: &str| app.options.allowed_origins.iter().any(|known| known == origin);
    match origin.to_str() {
        Ok(origin) if own(origin) || allowed(origin) => Ok(()),
        _ => Err(ApiError::new(
            Kind::Permission,
            "this server does not answer to pages of the origin in the `Origin` header; allow it with --allow-origin",
        )),
    }
}

/// The name of a `Host` header, without its port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(host, |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_own_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || is_name(name, "localhost")
}

fn is_name(name: &str, known: &str) -> bool {
    name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(known)
}

fn options() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, DELETE, OPTIONS"));
    response
}

/// A client may name its request, if the name is harmless in a log.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let harmless = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    given.filter(harmless).map_or_else(|| random("req_").into(), Into::into)
}

/// `prefix` and 24 random letters and digits: nobody guesses the rest.
pub fn random(prefix: &str) -> String {
    let mut text = prefix.to_owned();
    text.extend(rand::rng().sample_iter(Alphanumeric).take(24).map(char::from));
    text
}

fn finish_head(headers: &mut HeaderMap, id: &RequestId) {
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        headers.insert("x-request-id", id);
    }
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// What tells a browser that a page of an allowed origin may read the response and send the fields that it asks about:
/// SDKs have many of their own.
fn allowed_origin(app: &App, headers: &HeaderMap) -> HeaderMap {
    let mut told = HeaderMap::new();
    let origin = headers.get(header::ORIGIN);
    let known = |origin: &&HeaderValue| app.options.allowed_origins.iter().any(|known| *origin == known);
    let Some(origin) = origin.filter(known) else { return told };
    told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if let Some(fields) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        told.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fields.clone());
    }
    let fixed = [
        (header::VARY, "origin, access-control-request-headers"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-request-id, x-cachalot-ignored, retry-after"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    told.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_the_machine_itself() {
        for own in ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "[::1]", "10.0.0.7:80", "localhost.:80"]
        {
            assert!(is_own_name(host_name(own)), "{own}");
        }
        for foreign in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", "[evil]:1", ":80"]
        {
            assert!(!is_own_name(host_name(foreign)), "{foreign}");
        }
    }

    #[test]
    fn keys_are_found_in_both_headers() {
        let of = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            key(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of("authorization", "Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("authorization", "bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(of("authorization", "Basic abc"), None);
        assert_eq!(of("x-api-key", "abc"), Some(b"abc".to_vec()));
    }

    #[test]
    fn keys_fit_exactly_and_are_not_shown() {
        let keys = Keys::new(["secret", " other\n", ""]);
        assert!(keys.holds(b"secret") && keys.holds(b"other"));
        assert!(!keys.holds(b"") && !keys.holds(b"secre") && !keys.holds(b"secret2"));
        assert_eq!(format!("{keys:?}"), "Keys(2)");
        assert!(Keys::new([""]).is_empty());
    }
}
