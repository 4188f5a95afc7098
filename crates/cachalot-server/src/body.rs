//! Bodies of requests: read whole, within limits.
//!
//! Owns the room that all bodies together may take: a request waits for its share before a byte is read, and gives it back
//! when the body has become a prompt, or has not arrived in time. Small bodies need none, so that those who send large ones
//! slowly stand in nobody else's way. Refuses what is too large, too slow or not UTF-8.

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::app::App;
use crate::error::{ApiError, Kind};

/// Bytes per permit of the room for bodies.
const UNIT: usize = 1024;
/// Bytes of a body that needs no room, if it says how long it is: as many connections as there may be hold 32 MiB of them.
const SMALL: usize = 64 << 10;

/// A body, with the room that it takes.
pub struct Text {
    /// The text.
    pub text: String,
    /// Given back when dropped.
    _room: OwnedSemaphorePermit,
}

/// The room for `bytes` of bodies.
pub fn room(bytes: usize) -> Semaphore {
    Semaphore::new((bytes / UNIT).max(1))
}

/// Reads `body`.
///
/// # Errors
/// If it is too large, does not arrive in time, or is not UTF-8.
pub async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Text, ApiError> {
    let limits = &app.options.limits;
    let too_large = || {
        let limit = limits.body_bytes;
        ApiError::new(Kind::TooLarge, format!("the body is larger than {limit} bytes, the limit of this server"))
    };
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::invalid("compressed bodies are not read; send the JSON as it is"));
    }
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > limits.body_bytes as u64) {
        return Err(too_large());
    }
    let most = announced.map_or(limits.body_bytes, |bytes| bytes as usize);
    let units = if most <= SMALL { 0 } else { most.div_ceil(UNIT).min((limits.bodies_bytes / UNIT).max(1)) } as u32;
    let late = |what: &str| ApiError::new(Kind::Slow, what.to_owned());
    let room = timeout(limits.body_time, app.bodies.clone().acquire_many_owned(units)).await;
    let room = match room {
        Ok(Ok(room)) => room,
        _ => return Err(ApiError::new(Kind::Overloaded, "too many large requests are being read; try again later")),
    };
    let collected = timeout(limits.body_time, Limited::new(body, limits.body_bytes).collect()).await;
    let bytes = match collected {
        Err(_) => return Err(late("the body did not arrive in time")),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => return Err(ApiError::invalid("the body ended before it was complete")),
        Ok(Ok(collected)) => collected.to_bytes(),
    };
    match String::from_utf8(bytes.into()) {
        Ok(text) => Ok(Text { text, _room: room }),
        Err(_) => Err(ApiError::invalid("the body is not UTF-8")),
    }
}
