//! Runs the DeepSeek V4 family on a machine its user owns.
fn main() {}
