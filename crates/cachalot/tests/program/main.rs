//! The program as its users meet it: the real binary, on the model that ships and on fixtures of the repository.

mod chat;
mod damage;
mod faults;
mod forward;
mod interrupt;
mod others;
mod plan;
mod run;
mod serve;
mod support;
mod v4;
