//! Ctrl-C: the first press asks whatever is running to stop, a second one quits the program.
//!
//! A signal is counted, never acted on: whoever works looks at [`pressed`] and stops where it is safe.

use std::process::ExitCode;
use std::sync::LazyLock;

use cachalot_engine::{Interrupt, Turn};
use cachalot_text::parser::FinishReason;

/// The exit code of a program that was interrupted, as shells count it.
pub const EXIT_CODE: u8 = 130;

static PRESSED: LazyLock<Interrupt> = LazyLock::new(Interrupt::new);

/// Starts listening. Without a handler (a system that does not allow it) Ctrl-C ends the program as usual.
pub fn listen() {
    // Nothing is lost if this fails: the default action stays.
    let _ = ctrlc::set_handler(|| {
        if PRESSED.is_set() {
            std::process::exit(EXIT_CODE.into());
        }
        PRESSED.set(true);
    });
}

/// How a program ends that was asked for one answer.
pub fn exit_code(turn: &Turn) -> ExitCode {
    match turn.finish {
        FinishReason::Cancelled => ExitCode::from(EXIT_CODE),
        _ => ExitCode::SUCCESS,
    }
}

/// Whether Ctrl-C has been pressed since [`clear`].
pub fn pressed() -> bool {
    PRESSED.is_set()
}

/// Forgets a press: what was running has stopped.
pub fn clear() {
    PRESSED.set(false);
}

/// What engines look at while they wait for the disk.
pub fn handle() -> Interrupt {
    PRESSED.clone()
}
