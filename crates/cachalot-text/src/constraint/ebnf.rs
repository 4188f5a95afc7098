//! EBNF as other local servers take it (`root ::= "a" [0-9]+`), as a grammar in llguidance's variant of Lark.
//!
//! Owns reading it: rules, alternatives, texts in quotes, classes, groups, `* + ?` and counts. Rules that do not lead back
//! to themselves become terminals, and so does what stands together of them in other rules, for a terminal is matched many
//! times faster than a rule; as in Lark, a terminal takes as much text as it can. Refuses what it cannot read by its line.

use std::collections::HashMap;
use std::fmt::Write;

use super::calls::literal;

/// Deepest nesting of groups: the library's limit, as far as it goes.
const MAX_DEPTH: usize = 20;
/// Most rules.
const MAX_RULES: usize = 2000;

/// Whether a grammar is written so: its first rule says.
pub(super) fn is_ebnf(grammar: &str) -> bool {
    let lines = grammar.lines().map(str::trim_start);
    let first = lines.clone().find(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("//"));
    first.is_some_and(|line| line.trim_start_matches(is_of_name).trim_start().starts_with("::="))
}

/// Translates a grammar.
///
/// # Errors
/// What is wrong, and in which line.
pub(super) fn to_lark(grammar: &str) -> Result<String, String> {
    let mut reader = Reader { rest: grammar, whole: grammar, names: HashMap::new(), rules: Vec::new() };
    reader.grammar().map_err(|problem| format!("line {}: {problem}", reader.line()))?;
    let Reader { names, rules, .. } = reader;
    let mut bodies = Vec::with_capacity(rules.len());
    for (index, rule) in rules.into_iter().enumerate() {
        let name = || names.iter().find(|(_, known)| **known == index).map_or("", |(name, _)| name);
        bodies.push(rule.ok_or_else(|| format!("the rule {:?} is used but not defined", name()))?);
    }
    let root = names.get("root").copied().unwrap_or(0);
    Ok(Writer::new(&bodies).write(&bodies, root))
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Text(String),
    /// A class of characters, as a regular expression.
    Class(String),
    Rule(usize),
    Sequence(Vec<Expression>),
    Choice(Vec<Expression>),
    /// At least and, if there is a limit, at most so often.
    Repeat(Box<Expression>, u32, Option<u32>),
}

use Expression::{Choice, Class, Repeat, Rule, Sequence, Text};

struct Reader<'g> {
    whole: &'g str,
    rest: &'g str,
    names: HashMap<&'g str, usize>,
    rules: Vec<Option<Expression>>,
}

impl<'g> Reader<'g> {
    fn line(&self) -> usize {
        1 + self.whole[..self.whole.len() - self.rest.len()].matches('\n').count()
    }

    fn grammar(&mut self) -> Result<(), String> {
        loop {
            self.skip();
            if self.rest.is_empty() {
                return if self.rules.is_empty() { Err("there is no rule".to_owned()) } else { Ok(()) };
            }
            let name = self.name().ok_or("expected the name of a rule")?;
            self.skip();
            self.expect("::=")?;
            let index = self.index(name)?;
            let body = self.choice(0)?;
            if self.rules[index].replace(body).is_some() {
                return Err(format!("the rule {name:?} is defined twice"));
            }
        }
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest),
                None => return,
            }
        }
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(format!("expected {token:?}")) }
    }

    fn name(&mut self) -> Option<&'g str> {
        let (name, rest) = self.rest.split_at(self.rest.find(|c| !is_of_name(c)).unwrap_or(self.rest.len()));
        (!name.is_empty()).then(|| {
            self.rest = rest;
            name
        })
    }

    fn index(&mut self, name: &'g str) -> Result<usize, String> {
        let next = self.rules.len();
        let index = *self.names.entry(name).or_insert(next);
        if index == next {
            if next == MAX_RULES {
                return Err(format!("too many rules; at most {MAX_RULES}"));
            }
            self.rules.push(None);
        }
        Ok(index)
    }

    fn choice(&mut self, depth: usize) -> Result<Expression, String> {
        if depth > MAX_DEPTH {
            return Err(format!("groups are nested too deeply; at most {MAX_DEPTH}"));
        }
        let mut branches = vec![self.sequence(depth)?];
        while self.take("|") {
            branches.push(self.sequence(depth)?);
        }
        Ok(if branches.len() == 1 { branches.remove(0) } else { Choice(branches) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Expression, String> {
        let mut parts = Vec::new();
        loop {
            self.skip();
            let Some(part) = self.atom(depth)? else { break };
            parts.push(self.repeated(part)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Sequence(parts) })
    }

    /// The next part, unless something else begins.
    fn atom(&mut self, depth: usize) -> Result<Option<Expression>, String> {
        let found = match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                self.rest = &self.rest[1..];
                let mut text = String::new();
                while let Some(character) = self.character(quote)? {
                    text.push(character);
                }
                Text(text)
            }
            Some('[') => self.class()?,
            Some('.') => {
                self.rest = &self.rest[1..];
                Class("(?s:.)".to_owned())
            }
            Some('(') => {
                self.rest = &self.rest[1..];
                let inner = self.choice(depth + 1)?;
                self.expect(")")?;
                inner
            }
            Some(character) if is_of_name(character) => {
                let before = self.rest;
                let name = self.name().unwrap_or_default();
                self.skip();
                if self.rest.starts_with("::=") {
                    self.rest = before;
                    return Ok(None);
                }
                Rule(self.index(name)?)
            }
            None | Some('|' | ')') => return Ok(None),
            Some(character) => return Err(format!("unexpected {character:?}")),
        };
        Ok(Some(found))
    }

    fn repeated(&mut self, mut part: Expression) -> Result<Expression, String> {
        loop {
            self.skip();
            let (least, most) = match self.rest.chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let (counts, _) = self.rest[1..].split_once('}').ok_or("expected \"}\"")?;
                    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| format!("{text:?} is no count"));
                    let (least, most) = counts.split_once(',').unwrap_or((counts, counts));
                    let least = if least.trim().is_empty() && counts.contains(',') { 0 } else { number(least)? };
                    let most = if most.trim().is_empty() { None } else { Some(number(most)?) };
                    if most.is_some_and(|most| most < least || most > i32::MAX as u32) {
                        return Err(format!("{{{counts}}} is no range"));
                    }
                    self.rest = &self.rest[counts.len() + 1..];
                    (least, most)
                }
                _ => return Ok(part),
            };
            self.rest = &self.rest[1..];
            part = Repeat(Box::new(part), least, most);
        }
    }

    /// The next character of a text or class that `end` ends.
    fn character(&mut self, end: char) -> Result<Option<char>, String> {
        let unended = || format!("expected {end:?} at the end");
        let mut rest = self.rest.chars();
        let character = match rest.next().ok_or_else(unended)? {
            character if character == end => None,
            '\n' if end != ']' => return Err(unended()),
            '\\' => {
                let escape = rest.next().ok_or_else(unended)?;
                let digits = match escape {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                Some(match escape {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    _ if digits > 0 => {
                        let text = rest.as_str().get(..digits).unwrap_or_default();
                        let code = u32::from_str_radix(text, 16).ok().and_then(char::from_u32);
                        rest = rest.as_str().get(digits..).unwrap_or_default().chars();
                        code.ok_or_else(|| format!("\\{escape}{text} is no character"))?
                    }
                    other => other,
                })
            }
            character => Some(character),
        };
        self.rest = rest.as_str();
        Ok(character)
    }

    fn class(&mut self) -> Result<Expression, String> {
        self.rest = &self.rest[1..];
        let mut class = if self.take("^") { "[^".to_owned() } else { "[".to_owned() };
        let empty = class.len();
        while let Some(first) = self.character(']')? {
            write!(class, "\\x{{{:x}}}", u32::from(first)).ok();
            // A dash at the end stands for itself.
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.rest = &self.rest[1..];
                let last = self.character(']')?.filter(|last| *last >= first);
                let last = last.ok_or_else(|| format!("a range from {first:?} to a smaller character"))?;
                write!(class, "-\\x{{{:x}}}", u32::from(last)).ok();
            }
        }
        if class.len() == empty {
            return Err("a class without a character".to_owned());
        }
        class.push(']');
        Ok(Class(class))
    }
}

struct Writer {
    /// Rules that do not lead back to themselves, nor to one that does.
    regular: Vec<bool>,
    terminals: usize,
    out: String,
}

impl Writer {
    fn new(bodies: &[Expression]) -> Self {
        let mut this = Self { regular: vec![false; bodies.len()], terminals: 0, out: String::new() };
        loop {
            let found = |(index, body): (usize, &Expression)| !this.regular[index] && this.is_regular(body);
            let more: Vec<usize> =
                bodies.iter().enumerate().filter(|rule| found(*rule)).map(|(index, _)| index).collect();
            if more.is_empty() {
                return this;
            }
            more.into_iter().for_each(|index| this.regular[index] = true);
        }
    }

    fn is_regular(&self, expression: &Expression) -> bool {
        match expression {
            Text(_) | Class(_) => true,
            Rule(index) => self.regular[*index],
            Sequence(parts) | Choice(parts) => parts.iter().all(|part| self.is_regular(part)),
            Repeat(part, ..) => self.is_regular(part),
        }
    }

    fn write(mut self, bodies: &[Expression], root: usize) -> String {
        let start = self.rule_name(root);
        writeln!(self.out, "start: {start}").ok();
        for (index, body) in bodies.iter().enumerate() {
            let text = if self.regular[index] { self.inside(body) } else { self.rule(body) };
            let name = self.rule_name(index);
            writeln!(self.out, "{name}: {text}").ok();
        }
        self.out
    }

    fn rule_name(&self, index: usize) -> String {
        format!("{}{index}", if self.regular[index] { "R" } else { "r" })
    }

    /// As a part of a rule.
    fn rule(&mut self, expression: &Expression) -> String {
        match expression {
            Rule(index) => self.rule_name(*index),
            regular if self.is_regular(regular) => self.terminal(std::slice::from_ref(regular), " "),
            Sequence(parts) => {
                let runs = parts.chunk_by(|one, next| self.is_regular(one) && self.is_regular(next));
                let runs: Vec<&[Expression]> = runs.collect();
                let texts: Vec<String> = runs.into_iter().map(|run| self.run(run)).collect();
                format!("({})", texts.join(" "))
            }
            Choice(branches) => {
                let (regular, others): (Vec<Expression>, Vec<Expression>) =
                    branches.iter().cloned().partition(|branch| self.is_regular(branch));
                let mut texts: Vec<String> = others.iter().map(|branch| self.rule(branch)).collect();
                if !regular.is_empty() {
                    texts.push(self.terminal(&regular, " | "));
                }
                format!("({})", texts.join(" | "))
            }
            Repeat(part, least, most) => repeat(self.rule(part), *least, *most),
            Text(_) | Class(_) => self.inside(expression),
        }
    }

    fn run(&mut self, parts: &[Expression]) -> String {
        match parts {
            [one] => self.rule(one),
            several => self.terminal(several, " "),
        }
    }

    fn terminal(&mut self, parts: &[Expression], between: &str) -> String {
        let texts: Vec<String> = parts.iter().map(|part| self.inside(part)).collect();
        let name = format!("T{}", self.terminals);
        self.terminals += 1;
        writeln!(self.out, "{name}: {}", texts.join(between)).ok();
        name
    }

    /// As a part of a terminal.
    fn inside(&self, expression: &Expression) -> String {
        let all = |parts: &[Expression], between: &str| {
            let texts: Vec<String> = parts.iter().map(|part| self.inside(part)).collect();
            if texts.is_empty() { literal("") } else { format!("({})", texts.join(between)) }
        };
        match expression {
            Text(text) => literal(text),
            Class(class) => format!("/{class}/"),
            Rule(index) => self.rule_name(*index),
            Sequence(parts) => all(parts, " "),
            Choice(parts) => all(parts, " | "),
            Repeat(part, least, most) => repeat(self.inside(part), *least, *most),
        }
    }
}

fn repeat(part: String, least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (_, Some(0)) => literal(""),
        (0, None) => format!("({part})*"),
        (1, None) => format!("({part})+"),
        (0, Some(1)) => format!("({part})?"),
        (least, None) => format!("({part}){{{least},}}"),
        (least, Some(most)) => format!("({part}){{{least},{most}}}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(expression: &Expression) -> String {
        let all = |parts: &[Expression], between: &str| {
            let texts: Vec<String> = parts.iter().map(printed).collect();
            format!("({})", texts.join(between))
        };
        match expression {
            Text(text) => {
                let escaped: String = text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
                format!("\"{escaped}\"")
            }
            Class(class) => class.replace("\\x{", "\\U000000").replace('}', ""),
            Rule(index) => format!("rule-{index}"),
            Sequence(parts) => all(parts, " "),
            Choice(parts) => all(parts, "\n| # or\n"),
            Repeat(part, 0, None) => format!("({})*", printed(part)),
            Repeat(part, 1, None) => format!("({})+", printed(part)),
            Repeat(part, 0, Some(1)) => format!("({})?", printed(part)),
            Repeat(part, least, None) => format!("({}){{{least},}}", printed(part)),
            Repeat(part, least, Some(most)) => format!("({}){{{least}, {most}}}", printed(part)),
        }
    }

    fn expressions() -> impl Strategy<Value = Expression> {
        let leaf = prop_oneof![
            any::<String>().prop_map(Text),
            prop_oneof![Just("[\\x{41}]"), Just("[^\\x{5d}-\\x{7e}\\x{22}]")].prop_map(|class| Class(class.to_owned())),
            (0usize..3).prop_map(Rule),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let several = || prop::collection::vec(inner.clone(), 2..4);
            let counts = (0u32..4, prop::option::of(0u32..4));
            prop_oneof![
                several().prop_map(Sequence),
                several().prop_map(Choice),
                (inner.clone(), counts)
                    .prop_map(|(part, (least, more))| { Repeat(Box::new(part), least, more.map(|more| least + more)) }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(body in expressions()) {
            let grammar = format!("rule-0 ::= {}\n rule-1::=\"a\"\n\n#end\nrule-2 ::= rule-1 |\n\"\"", printed(&body));
            let mut reader = Reader { rest: &grammar, whole: &grammar, names: HashMap::new(), rules: Vec::new() };
            reader.grammar().expect("a grammar");
            // Rules are numbered as they are named first.
            let number = |name: &str| reader.names.get(name).copied();
            let mut again = reader.rules[0].clone().expect("a rule");
            fn renumber(expression: &mut Expression, of: &[Option<usize>]) {
                match expression {
                    Rule(index) => *index = of.iter().position(|known| *known == Some(*index)).expect("known"),
                    Sequence(parts) | Choice(parts) => parts.iter_mut().for_each(|part| renumber(part, of)),
                    Repeat(part, ..) => renumber(part, of),
                    Text(_) | Class(_) => {}
                }
            }
            renumber(&mut again, &[number("rule-0"), number("rule-1"), number("rule-2")]);
            prop_assert_eq!(again, body);
            prop_assert!(is_ebnf(&grammar));
            to_lark(&grammar).expect("it is translated");
        }

        #[test]
        fn no_text_is_too_strange(text in "(root|a|::=|\\||\\(|\\)|\\[|\\]|-|\"|\\\\|\\^|\\{|\\}|,|[0-9]|\n|#|.| ){0,40}") {
            is_ebnf(&text);
            to_lark(&text).ok();
        }
    }

    #[test]
    fn rules_that_do_not_lead_back_become_terminals() {
        let grammar = "# JSON, nearly\nroot ::= list\nlist ::= \"[\" ws (item (\",\" ws item)*)? \"]\" ws\n\
                       item ::= list | [0-9]{1,3} ws | \"null\"\nws ::= [ \\n]*\n";
        let lark = to_lark(grammar).expect("it is translated");
        assert_eq!(
            lark.lines().collect::<Vec<_>>(),
            [
                "start: r0",
                "r0: r1",
                "T0: \"[\" R2",
                "T1: \",\" R2",
                "T2: \"]\" R2",
                "r1: (T0 ((r3 ((T1 r3))*))? T2)",
                "R2: (/[\\x{20}\\x{a}]/)*",
                "T3: ((/[\\x{30}-\\x{39}]/){1,3} R2) | \"null\"",
                "r3: (r1 | T3)",
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_line() {
        for (grammar, problem) in [
            ("", "no rule"),
            ("root = \"a\"", "line 1: expected \"::=\""),
            ("root ::= \"a\n\"", "line 1: expected '\"' at the end"),
            ("root ::= \"a\"\nroot ::= b", "line 2: the rule \"root\" is defined twice"),
            ("root ::= b", "the rule \"b\" is used but not defined"),
            ("root ::= (\"a\"", "expected \")\""),
            ("root ::= []", "a class without"),
            ("root ::= [z-a]", "smaller character"),
            ("root ::= \"\\uD800\"", "is no character"),
            ("root ::= \"a\"{3,1}", "{3,1} is no range"),
            ("root ::= \"a\"{x}", "\"x\" is no count"),
            ("root ::=\n *", "line 2: unexpected '*'"),
            (&format!("root ::= {}", "(".repeat(50)), "nested too deeply"),
        ] {
            let found = to_lark(grammar).expect_err(grammar);
            assert!(found.contains(problem), "{grammar}: {found}");
        }
        assert!(!is_ebnf("start: \"::=\"") && !is_ebnf("# a ::= b\nstart: /a/") && is_ebnf("\n# x\n a-b ::= \"c\""));
    }
}
