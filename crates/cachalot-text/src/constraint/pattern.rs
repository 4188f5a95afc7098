//! Regular expressions of schemas as expressions that match whole texts.
//!
//! Owns two translations: `pattern` of JSON Schema, which is ECMA-262 and searches anywhere in a text, and `format`. What
//! comes out is in the syntax of the `regex` crate, matches from the first to the last character and holds no anchors.
//! Refuses what no automaton can do: look-around, back-references, anchors in the middle.

use regex_syntax::hir::{Dot, Hir, HirKind, Look, Repetition};

/// Longest pattern, in bytes.
pub(super) const MAX_PATTERN: usize = 4096;
/// Most parts of a pattern, repeated ones counted as often as they are.
const MAX_PARTS: usize = 20_000;

/// An expression for the texts in which `pattern` is found.
///
/// # Errors
/// What is wrong with it.
pub(super) fn whole(pattern: &str) -> Result<String, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("{} bytes long; at most {MAX_PATTERN}", pattern.len()));
    }
    // What the program that runs the schema checks with makes of it, so that both mean the same.
    let translated = jsonschema_regex::to_rust_regex(pattern).map_err(|()| "not a regular expression".to_owned())?;
    let parsed = regex_syntax::Parser::new().parse(&translated).map_err(|error| match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        _ => "not a regular expression".to_owned(),
    })?;
    let searched = end(start(parsed)?)?;
    if !searched.properties().look_set().is_empty() {
        return Err("anchors and word boundaries are possible at the start and the end only".to_owned());
    }
    if parts(&searched) > MAX_PARTS {
        return Err("too large".to_owned());
    }
    Ok(searched.to_string())
}

/// How large an automaton for `hir` may become.
fn parts(hir: &Hir) -> usize {
    let sum = hir.kind().subs().iter().map(parts).fold(1, usize::saturating_add);
    match hir.kind() {
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Class(_) => 2,
        HirKind::Repetition(repetition) => {
            sum.saturating_mul(repetition.max.unwrap_or(repetition.min.saturating_add(1)).max(1) as usize)
        }
        _ => sum,
    }
}

/// Any text.
fn anything() -> Hir {
    let any = Box::new(Hir::dot(Dot::AnyChar));
    Hir::repetition(Repetition { min: 0, max: None, greedy: true, sub: any })
}

/// `hir` with what a search may skip before it: nothing after `^`, anything elsewhere.
fn start(hir: Hir) -> Result<Hir, String> {
    if !hir.properties().look_set().contains(Look::Start) {
        return Ok(Hir::concat(vec![anything(), hir]));
    }
    match hir.into_kind() {
        HirKind::Look(Look::Start) => Ok(Hir::empty()),
        HirKind::Capture(capture) => start(*capture.sub),
        HirKind::Alternation(branches) => {
            Ok(Hir::alternation(branches.into_iter().map(start).collect::<Result<_, _>>()?))
        }
        HirKind::Concat(mut parts) => {
            let first = parts.remove(0);
            parts.insert(0, start(first)?);
            Ok(Hir::concat(parts))
        }
        _ => Err("^ is possible at the start only".to_owned()),
    }
}

/// `hir` with what a search may leave after it.
fn end(hir: Hir) -> Result<Hir, String> {
    if !hir.properties().look_set().contains(Look::End) {
        return Ok(Hir::concat(vec![hir, anything()]));
    }
    match hir.into_kind() {
        HirKind::Look(Look::End) => Ok(Hir::empty()),
        HirKind::Capture(capture) => end(*capture.sub),
        HirKind::Alternation(branches) => {
            Ok(Hir::alternation(branches.into_iter().map(end).collect::<Result<_, _>>()?))
        }
        HirKind::Concat(mut parts) => {
            if let Some(last) = parts.pop() {
                parts.push(end(last)?);
            }
            Ok(Hir::concat(parts))
        }
        _ => Err("$ is possible at the end only".to_owned()),
    }
}

/// Keeps the texts that `expression`, from [`whole`] or [`format()`], matches; none if it is too large to be tried.
pub(super) fn keep_matching(expression: &str, texts: &mut Vec<String>) {
    let regex = regex::Regex::new(&format!("^(?:{expression})$"));
    texts.retain(|text| regex.as_ref().is_ok_and(|regex| regex.is_match(text)));
}

/// Checks a regular expression that an answer must match as a whole. It is used as it is.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(regex: &str) -> Result<(), String> {
    if regex.is_empty() {
        return Err("it is empty, and so would be the answer".to_owned());
    }
    if regex.len() > MAX_PATTERN {
        return Err(format!("{} bytes long; at most {MAX_PATTERN}", regex.len()));
    }
    let hir = regex_syntax::parse(regex).map_err(|error| error.to_string())?;
    if parts(&hir) > MAX_PARTS {
        return Err("too large".to_owned());
    }
    if has_stop_group(&hir) {
        return Err("a group cannot be named \"stop\"".to_owned());
    }
    Ok(())
}

/// The grammar library gives this name a meaning of its own.
fn has_stop_group(hir: &Hir) -> bool {
    let named = matches!(hir.kind(), HirKind::Capture(capture) if capture.name.as_deref() == Some("stop"));
    named || hir.kind().subs().iter().any(has_stop_group)
}

/// What a `format` of JSON Schema is to us.
pub(super) enum Format {
    /// An expression for it.
    Known(String),
    /// JSON Schema knows it, this program does not.
    Unsupported,
    /// A name that JSON Schema does not know: an annotation.
    Annotation,
}

/// The expression of a format. Where a format has no limits or odd corners, texts that everybody accepts.
pub(super) fn format(name: &str) -> Format {
    const TIME: &str =
        r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const LABEL: &str = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,40}[a-zA-Z0-9])?";
    let byte = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    Format::Known(match name {
        "date" => date(),
        "time" => TIME.to_owned(),
        "date-time" => format!("(?:{})T{TIME}", date()),
        "duration" => duration(),
        "email" => {
            let local = "[a-zA-Z0-9_+-]";
            format!(r"{local}{{1,32}}(?:\.{local}{{1,31}})?@{LABEL}(?:\.{LABEL}){{1,4}}")
        }
        "hostname" => format!(r"{LABEL}(?:\.{LABEL}){{0,4}}"),
        "ipv4" => format!(r"(?:{byte}\.){{3}}{byte}"),
        "ipv6" => ipv6(),
        "uuid" => "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}".to_owned(),
        "uri" => uri(LABEL),
        "idn-email"
        | "idn-hostname"
        | "uri-reference"
        | "iri"
        | "iri-reference"
        | "uri-template"
        | "json-pointer"
        | "relative-json-pointer"
        | "regex" => return Format::Unsupported,
        _ => return Format::Annotation,
    })
}

/// A day of the calendar, the last of February in leap years only.
fn date() -> String {
    let leap = "[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00";
    format!(
        "[0-9]{{4}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)\
         |02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:{leap})-02-29"
    )
}

fn duration() -> String {
    let number = "[0-9]{1,9}";
    let time = format!("T(?:{number}H(?:{number}M(?:{number}S)?)?|{number}M(?:{number}S)?|{number}S)");
    let days = format!("{number}Y(?:{number}M(?:{number}D)?)?|{number}M(?:{number}D)?|{number}D");
    format!("P(?:{number}W|(?:{days})(?:{time})?|{time})")
}

fn ipv6() -> String {
    let group = "[0-9a-fA-F]{1,4}";
    // All eight groups, or two colons that stand for one or more of them.
    let mut forms = vec![format!("(?:{group}:){{7}}{group}"), format!("(?:{group}:){{1,7}}:")];
    forms.extend((1..=6).map(|after| format!("(?:{group}:){{1,{}}}(?::{group}){{1,{after}}}", 7 - after)));
    forms.push(format!(":(?:(?::{group}){{1,7}}|:)"));
    format!("(?:{})", forms.join("|"))
}

fn uri(label: &str) -> String {
    let character = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})";
    let authority = format!(r"(?:[a-zA-Z0-9._~-]{{1,40}}@)?{label}(?:\.{label}){{0,6}}(?::[0-9]{{1,4}})?");
    format!(
        r"[a-zA-Z][a-zA-Z0-9+.-]{{0,20}}:(?://{authority}(?:/{character}*)*|{character}+(?:/{character}*)*)(?:\?(?:{character}|[/?])*)?(?:#(?:{character}|[/?])*)?"
    )
}

#[cfg(test)]
pub(super) fn matches(expression: &str, text: &str) -> bool {
    let mut texts = vec![text.to_owned()];
    keep_matching(expression, &mut texts);
    !texts.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_where_ecma_finds_it() {
        for (pattern, yes, no) in [
            ("a", vec!["a", "xax", "\na\n"], vec!["", "b"]),
            ("^a", vec!["a", "ab"], vec!["ba"]),
            ("a$", vec!["a", "ba"], vec!["ab", "a\n"]),
            ("^$", vec![""], vec!["a"]),
            ("^a|b$", vec!["ax", "xb"], vec!["xa", "bx"]),
            ("(^a|b)c", vec!["ac", "xbc", "acx"], vec!["xac"]),
            ("^(?:a|b$)", vec!["ax", "b"], vec!["bx"]),
            ("^\\d{3}-\\w+$", vec!["123-a_Z"], vec!["12-a", "\u{661}\u{661}\u{661}-a", "123-é"]),
            ("^[^\\s/]+$", vec!["a-b"], vec!["a b", "a/b", ""]),
            ("^\\/[\\w.-]+$", vec!["/a.b-c"], vec!["/"]),
            ("^(a+)+$", vec!["aaaa"], vec!["aab"]),
            ("", vec!["", "anything"], vec![]),
        ] {
            let expression = whole(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            for text in yes {
                assert!(matches(&expression, text), "{pattern} {text:?}: {expression}");
            }
            for text in no {
                assert!(!matches(&expression, text), "{pattern} {text:?}: {expression}");
            }
        }
    }

    #[test]
    fn what_no_automaton_can_do_is_refused() {
        let long = "a".repeat(MAX_PATTERN + 1);
        for pattern in ["(?=a)b", "(?!a)b", "(a)\\1", "a^b", "a$b", "\\bword", "(", "(^a)*", "a{10000000}", &long] {
            assert!(whole(pattern).is_err(), "{pattern}");
        }
        assert!(check("(?P<stop>a)").is_err() && check("").is_err() && check("[").is_err());
        assert!(check("(?P<word>[a-z]+) (?s:.*)").is_ok());
    }

    #[test]
    fn formats_match_what_they_name() {
        for (name, yes, no) in [
            ("date", vec!["2024-02-29", "2000-02-29", "1999-12-31"], vec!["2023-02-29", "1900-02-29", "2020-13-01"]),
            ("time", vec!["23:59:59Z", "00:00:00.5+02:00"], vec!["24:00:00Z", "12:00:00"]),
            ("date-time", vec!["2024-02-29T12:00:00Z"], vec!["2024-02-29 12:00:00Z", "2024-02-29"]),
            ("duration", vec!["P1Y2M3D", "PT5M", "P2W", "P1DT12H"], vec!["P", "1D", "PT", "P1S"]),
            ("email", vec!["a.b+c@example.com"], vec!["a@b", "a@@b.c", "a b@c.de"]),
            ("hostname", vec!["example.com", "x"], vec!["-x", "a..b", ""]),
            ("ipv4", vec!["0.0.0.0", "255.1.20.99"], vec!["256.1.1.1", "1.1.1", "01.1.1.1"]),
            (
                "ipv6",
                vec!["::", "::1", "1:2:3:4:5:6:7:8", "fe80::1:2", "1::"],
                vec!["1:2", ":::", "1::2::3", "12345::"],
            ),
            ("uuid", vec!["01234567-89ab-cdef-0123-456789ABCDEF"], vec!["01234567"]),
            ("uri", vec!["https://a.b:80/c?d=e#f", "mailto:a@b", "urn:x:y"], vec!["a", "http://a b", "//a"]),
        ] {
            let Format::Known(expression) = format(name) else { panic!("{name}") };
            regex_syntax::parse(&expression).unwrap_or_else(|error| panic!("{name}: {error}"));
            for text in yes {
                assert!(matches(&expression, text), "{name} {text:?}");
            }
            for text in no {
                assert!(!matches(&expression, text), "{name} {text:?}");
            }
        }
        assert!(matches!(format("uri-template"), Format::Unsupported));
        assert!(matches!(format("int32"), Format::Annotation));
    }
}
