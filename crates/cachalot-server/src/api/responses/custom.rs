//! The free text of a custom tool call, out of the JSON that the model writes: `{"input": "..."}`.
//!
//! Works on pieces as they come. Arguments of another form are passed on as they are.

/// Reads one call's arguments.
#[derive(Debug, Default)]
pub struct CustomInput {
    state: State,
    held: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Before,
    Inside,
    Other,
    Done,
}

impl CustomInput {
    /// The text of a whole call.
    pub fn whole(arguments: &str) -> String {
        let mut input = Self::default();
        let mut text = input.feed(arguments);
        text += &input.finish();
        text
    }

    /// More arguments; returns more text.
    pub fn feed(&mut self, arguments: &str) -> String {
        if self.state == State::Done {
            return String::new();
        }
        self.held += arguments;
        if self.state == State::Before {
            match prefix(&self.held) {
                Some(0) => return String::new(),
                Some(length) => {
                    self.held.drain(..length);
                    self.state = State::Inside;
                }
                None => self.state = State::Other,
            }
        }
        if self.state == State::Other {
            return std::mem::take(&mut self.held);
        }
        let (length, ended) = text_length(self.held.as_bytes());
        let text = self.held.drain(..length).collect::<String>();
        if ended {
            self.held.clear();
            self.state = State::Done;
        }
        // What is no JSON string stays as it is: half a surrogate pair, for one.
        serde_json::from_str(&format!("\"{text}\"")).unwrap_or(text)
    }

    /// The end of the arguments: what was held back.
    pub fn finish(&mut self) -> String {
        self.state = State::Done;
        std::mem::take(&mut self.held)
    }
}

/// The length of `{"input": "` at the start, with any blanks between; 0 while it may still come, `None` if it cannot.
fn prefix(text: &str) -> Option<usize> {
    let mut rest = text;
    for part in ["{", "\"input\"", ":", "\""] {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        match rest.strip_prefix(part) {
            Some(after) => rest = after,
            None if part.starts_with(rest) => return Some(0),
            None => return None,
        }
    }
    Some(text.len() - rest.len())
}

/// How much of a JSON string's inside is complete, and whether it ends there.
fn text_length(bytes: &[u8]) -> (usize, bool) {
    let mut at = 0;
    while at < bytes.len() {
        let needed = match (bytes[at], bytes.get(at + 1)) {
            (b'"', _) => return (at, true),
            (b'\\', Some(b'u')) => {
                let high = bytes.get(at + 2..at + 4).is_some_and(|digits| {
                    digits[0].eq_ignore_ascii_case(&b'd')
                        && matches!(digits[1], b'8' | b'9' | b'a' | b'b' | b'A' | b'B')
                });
                if high { 12 } else { 6 }
            }
            (b'\\', _) => 2,
            _ => 1,
        };
        if at + needed > bytes.len() {
            return (at, false);
        }
        at += needed;
    }
    (at, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cutting_gives_the_text() {
        let text = "*** a\n\"q\" \\ é 😀 \u{1}";
        for arguments in [
            serde_json::json!({"input": text}).to_string(),
            format!("{{ \"input\"\n: {} , \"more\": 1}}", serde_json::to_string(text).unwrap()),
            r#"{"input": "*** a\n\"q\" \\ \u00e9 \ud83d\ude00 \u0001"}"#.to_owned(),
        ] {
            assert_eq!(CustomInput::whole(&arguments), text);
            let mut input = CustomInput::default();
            let mut fed: String = arguments.chars().map(|piece| input.feed(&piece.to_string())).collect();
            fed += &input.finish();
            assert_eq!(fed, text);
        }
    }

    #[test]
    fn other_forms_pass_and_what_is_cut_off_is_kept() {
        assert_eq!(CustomInput::whole(r#"{"patch": "x"}"#), r#"{"patch": "x"}"#);
        assert_eq!(CustomInput::whole("{}"), "{}");
        assert_eq!(CustomInput::whole(r#"{"input": "ab"#), "ab");
        assert_eq!(CustomInput::whole(r#"{"inp"#), r#"{"inp"#);
        assert_eq!(CustomInput::whole(r#"{"input": "a\u00"#), r"a\u00");
    }
}
