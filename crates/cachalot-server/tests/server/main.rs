//! The server over real loopback connections: with a backend that plays given tokens, and with the model that ships.

mod client;
mod completions;
mod errors;
mod gate;
mod nano;
mod openapi;
mod playback;
mod replay;
mod responses;
mod streams;
mod waiting;
