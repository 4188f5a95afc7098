//! Forward pass and sequence state of the DeepSeek V4 family.
