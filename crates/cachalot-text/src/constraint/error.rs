//! Why an output cannot be constrained as asked.

/// A constraint that cannot be built. `at` names the place: the part of the request, then the path inside its schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// A keyword of JSON Schema that decoding cannot be held to.
    #[error("{at}: the keyword {keyword:?} is not supported in constrained output: {why}")]
    Unsupported {
        /// Where.
        at: String,
        /// The keyword.
        keyword: String,
        /// What to do, or what is possible.
        why: String,
    },
    /// Something that is wrong in itself.
    #[error("{at}: {problem}")]
    Invalid {
        /// Where.
        at: String,
        /// What is wrong.
        problem: String,
    },
    /// A limit.
    #[error("{at}: {what}; at most {limit}")]
    TooLarge {
        /// Where.
        at: String,
        /// What is too much.
        what: String,
        /// How much is possible.
        limit: usize,
    },
    /// The answer has begun already.
    #[error("an answer that is continued (prefix) cannot be held to a format: ask for it anew, or without the format")]
    ContinuedAnswer,
}

impl ConstraintError {
    pub(super) fn invalid(at: &str, problem: impl Into<String>) -> Self {
        Self::Invalid { at: at.to_owned(), problem: problem.into() }
    }
}
