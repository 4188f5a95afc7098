//! The two prompt formats.

/// Which prompt format a checkpoint was trained with. The caller knows it from config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// DeepSeek V4 (Flash and Pro).
    V4,
    /// DeepSeek V4.1 (Flash).
    V41,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "DeepSeek V4",
            Self::V41 => "DeepSeek V4.1",
        })
    }
}
