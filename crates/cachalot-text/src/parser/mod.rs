//! x
/// x
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartState {
    /// x
    Reasoning {
        /// x
        drop_newlines: bool,
    },
    /// x
    Answer {
        /// x
        drop_newlines: bool,
    },
    /// x
    Calls,
    /// x
    Raw,
}
