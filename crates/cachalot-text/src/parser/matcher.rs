//! Incremental search for markers in the model's output (protocol.md 3.1, 3.3).
//!
//! Owns the search for several markers at once in a stream of symbols, and the answer to how much of the tail may still
//! become one. A control token is one symbol, so a marker that is spelled with ordinary tokens is never found.

/// One symbol of the output: a character, or an added token by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Symbol {
    Char(char),
    Added(u32),
}

/// A marker: its symbols and the failure table of Knuth, Morris and Pratt.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    symbols: Vec<Symbol>,
    failure: Vec<usize>,
    /// Whether newlines directly before the marker belong to it.
    takes_newlines: bool,
}

impl Pattern {
    /// A marker of at least one symbol.
    pub(super) fn new(symbols: Vec<Symbol>, takes_newlines: bool) -> Self {
        let mut failure = vec![0; symbols.len()];
        let mut length = 0;
        for index in 1..symbols.len() {
            while length > 0 && symbols[index] != symbols[length] {
                length = failure[length - 1];
            }
            if symbols[index] == symbols[length] {
                length += 1;
            }
            failure[index] = length;
        }
        Self { symbols, failure, takes_newlines }
    }

    /// A marker of plain text.
    pub(super) fn text(text: &str) -> Self {
        Self::new(text.chars().map(Symbol::Char).collect(), false)
    }

    fn advance(&self, mut matched: usize, symbol: Symbol) -> usize {
        if matched == self.symbols.len() {
            matched = self.failure[matched - 1];
        }
        while matched > 0 && self.symbols[matched] != symbol {
            matched = self.failure[matched - 1];
        }
        matched + usize::from(self.symbols[matched] == symbol)
    }
}

/// The markers of one state, with how much of each the held tail ends in.
#[derive(Debug)]
pub(super) struct Matcher<A> {
    candidates: Vec<(Pattern, usize, A)>,
    /// Symbols that were fed and neither matched nor released.
    held: Vec<Symbol>,
}

/// What a symbol led to.
pub(super) enum Step<A> {
    /// No marker ends here; the symbols can be none and are not part of any.
    Text(Vec<Symbol>),
    /// A marker ends here; the symbols before it.
    Found(Vec<Symbol>, A),
}

impl<A: Copy> Matcher<A> {
    /// Search for `markers`; of two that end at one symbol the earlier in the list wins.
    pub(super) fn new(markers: impl IntoIterator<Item = (Pattern, A)>) -> Self {
        let candidates = markers.into_iter().map(|(pattern, action)| (pattern, 0, action)).collect();
        Self { candidates, held: Vec::new() }
    }

    /// Feed one symbol.
    pub(super) fn feed(&mut self, symbol: Symbol) -> Step<A> {
        self.held.push(symbol);
        let mut keep = 0;
        for (pattern, matched, action) in &mut self.candidates {
            *matched = pattern.advance(*matched, symbol);
            let before = self.held.len() - *matched;
            let newlines = match pattern.takes_newlines {
                true => self.held[..before].iter().rev().take_while(|held| **held == Symbol::Char('\n')).count(),
                false => 0,
            };
            if *matched == pattern.symbols.len() {
                let mut text = std::mem::take(&mut self.held);
                text.truncate(before - newlines);
                return Step::Found(text, *action);
            }
            keep = keep.max(*matched + newlines);
        }
        let release = self.held.len() - keep;
        Step::Text(self.held.drain(..release).collect())
    }

    /// Give up what is held.
    pub(super) fn flush(&mut self) -> Vec<Symbol> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(markers: &[(&str, bool)], text: &str) -> String {
        let patterns = markers.iter().enumerate().map(|(index, (marker, newlines))| {
            (Pattern::new(marker.chars().map(Symbol::Char).collect(), *newlines), index)
        });
        let mut matcher = Matcher::new(patterns);
        let mut out = String::new();
        let mut put = |symbols: Vec<Symbol>| {
            out.extend(symbols.iter().map(|symbol| match symbol {
                Symbol::Char(character) => *character,
                Symbol::Added(_) => '?',
            }));
        };
        for character in text.chars() {
            match matcher.feed(Symbol::Char(character)) {
                Step::Text(symbols) => put(symbols),
                Step::Found(symbols, action) => {
                    put(symbols);
                    put(vec![Symbol::Char('['), Symbol::Char((b'0' + action as u8) as char), Symbol::Char(']')]);
                    return out;
                }
            }
        }
        put(matcher.flush());
        out
    }

    #[test]
    fn markers_are_found_after_false_alarms() {
        assert_eq!(run(&[("abc", false)], "ababc"), "ab[0]");
        assert_eq!(run(&[("aab", false)], "aaab"), "a[0]");
        assert_eq!(run(&[("abab", false), ("b", false)], "xab"), "xa[1]");
        assert_eq!(run(&[("ab", false), ("b", false)], "ab"), "[0]");
        assert_eq!(run(&[("abc", false)], "abab"), "abab");
    }

    #[test]
    fn newlines_before_a_marker_belong_to_it_if_it_takes_them() {
        assert_eq!(run(&[("<x", true)], "a\n\n<\n\n\n<x"), "a\n\n<[0]");
        assert_eq!(run(&[("<x", false)], "a\n<x"), "a\n[0]");
        assert_eq!(run(&[("<x", true)], "a\n\n"), "a\n\n");
        assert_eq!(run(&[("\n\n", false), ("<x", true)], "a\n<x"), "a[1]");
    }

    #[test]
    fn only_what_may_become_a_marker_is_held() {
        let mut matcher = Matcher::new([(Pattern::text("stop"), ())]);
        for (character, released) in [('a', 1), ('s', 0), ('t', 0), ('x', 3)] {
            assert!(matches!(matcher.feed(Symbol::Char(character)), Step::Text(text) if text.len() == released));
        }
        assert!(matcher.flush().is_empty());
    }
}
