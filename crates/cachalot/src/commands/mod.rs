//! One file per command.

pub mod bench;
pub mod chat;
pub mod forward;
pub mod inspect;
pub mod plan;
pub mod ps;
pub mod run;
pub mod serve;
pub mod synth;
pub mod trace;
