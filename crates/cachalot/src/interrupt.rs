//! Ctrl-C: the first press asks whatever is running to stop, a second one quits the program.
//!
//! A signal is counted, never acted on: whoever works looks at [`pressed`] and stops where it is safe.

use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a program that was interrupted, as shells count it.
pub const EXIT_CODE: u8 = 130;

static PRESSED: AtomicBool = AtomicBool::new(false);

/// Starts listening. Without a handler (a system that does not allow it) Ctrl-C ends the program as usual.
pub fn listen() {
    // Nothing is lost if this fails: the default action stays.
    let _ = ctrlc::set_handler(|| {
        if PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_CODE.into());
        }
    });
}

/// Whether Ctrl-C has been pressed since [`clear`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Forgets a press: what was running has stopped.
pub fn clear() {
    PRESSED.store(false, Ordering::SeqCst);
}
