//! The spellings of control tokens (protocol.md 1.3). Bars are U+FF5C and underscores U+2581 where they look wide.

/// Begin of sentence.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// End of sentence.
pub const EOS: &str = "<｜end▁of▁sentence｜>";
/// Opens a user turn.
pub const USER: &str = "<｜User｜>";
/// Opens a turn of the model.
pub const ASSISTANT: &str = "<｜Assistant｜>";
/// Opens a system text (V4.1).
pub const SYSTEM: &str = "<｜System｜>";
/// Opens reasoning.
pub const THINK_OPEN: &str = "<think>";
/// Closes reasoning.
pub const THINK_CLOSE: &str = "</think>";
/// Marks the tags of tool calls.
pub const DSML: &str = "｜DSML｜";
/// Opens a reminder.
pub const LATEST_REMINDER: &str = "<｜latest_reminder｜>";
/// Fill in the middle: before the prefix.
pub const FIM_BEGIN: &str = "<｜fim▁begin｜>";
/// Fill in the middle: between prefix and suffix.
pub const FIM_HOLE: &str = "<｜fim▁hole｜>";
/// Fill in the middle: after the suffix.
pub const FIM_END: &str = "<｜fim▁end｜>";
/// Grounding tokens, which are vocabulary of the model in assistant content and reasoning (1.5).
pub const GROUNDING: [&str; 8] = [
    "<｜ref｜>",
    "<｜/ref｜>",
    "<｜box｜>",
    "<｜/box｜>",
    "<｜point｜>",
    "<｜/point｜>",
    "<｜polygon｜>",
    "<｜/polygon｜>",
];
