//! Several problems reported at once, up to a limit: a person who repairs a download wants to see them all.

use std::fmt;

/// Most problems that are kept; the rest is counted.
pub const MAX_PROBLEMS: usize = 20;

/// A list of problems, in the order they were found.
#[derive(Debug)]
pub struct Problems<T> {
    list: Vec<T>,
    more: usize,
}

impl<T> Default for Problems<T> {
    fn default() -> Self {
        Self { list: Vec::new(), more: 0 }
    }
}

impl<T> Problems<T> {
    /// Adds one; beyond [`MAX_PROBLEMS`] it is only counted.
    pub fn push(&mut self, problem: T) {
        if self.list.len() < MAX_PROBLEMS { self.list.push(problem) } else { self.more += 1 }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The problems that were kept.
    pub fn list(&self) -> &[T] {
        &self.list
    }

    /// How many more there were.
    pub fn more(&self) -> usize {
        self.more
    }
}

impl<T> IntoIterator for Problems<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<T: fmt::Display> fmt::Display for Problems<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.list.iter().enumerate() {
            write!(f, "{}{problem}", if place == 0 { "" } else { "\n  " })?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_counted() {
        let mut problems = Problems::default();
        assert!(problems.is_empty());
        (0..25).for_each(|number| problems.push(number));
        assert_eq!((problems.list().len(), problems.more()), (20, 5));
        assert!(problems.to_string().ends_with("\n  19\n  and 5 more"));
    }
}
