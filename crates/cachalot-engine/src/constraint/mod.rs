//! Constrained decoding: outputs that cannot be malformed.
//!
//! Owns what `llguidance` needs of a model (its vocabulary as a trie, made once), grammars compiled for a request, and the
//! limits that keep a hostile grammar from costing more than an honest one. `state.rs` walks an output through them.
//! Refuses to read schemas: `cachalot-text` turns conversations into grammars.

mod state;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cachalot_text::constraint::{ConstraintError as RuleError, Grammar, OutputConstraint, Schema};
use cachalot_text::parser::StartState;
use cachalot_text::request::Constraint as Wish;
use cachalot_text::{Conversation, Tokenizer};
use llguidance::TokenParser;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use serde_json::{Value, json};

pub(crate) use state::Constrained;
use vocabulary::{Ids, Vocabulary};

/// Compiled constraints that are kept: agents send the same tools again and again.
const KEPT: usize = 16;
/// Stack of the thread that compiles: the library walks schemas recursively.
const STACK_BYTES: usize = 16 << 20;

/// Why an output cannot be constrained as asked, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The request asks for something that cannot be ensured.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// A grammar or schema that the library does not take.
    #[error("{at}: {problem}")]
    Grammar {
        /// Where in the request.
        at: String,
        /// What the library says.
        problem: String,
    },
    /// The vocabulary cannot be searched.
    #[error("this model's vocabulary cannot be held to a grammar: {0}")]
    Vocabulary(String),
    /// A step that would take too long.
    #[error("the grammar or schema is too ambiguous or too large to be followed any further: {0}")]
    Step(String),
}

/// What the output of one request must be, compiled. Cheap to clone; one for many requests.
#[derive(Clone)]
pub struct Constraint(Arc<Compiled>);

struct Compiled {
    rules: OutputConstraint,
    block: Option<Start>,
    answer: Vec<Start>,
    notes: Vec<String>,
    ids: Arc<Ids>,
}

/// A grammar before its first token.
struct Start {
    parser: Mutex<TokenParser>,
    /// Whether control tokens of the vocabulary may not be used, whatever the grammar says.
    foreign: bool,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = &self.0.rules;
        f.debug_struct("Constraint")
            .field("reasoning", &rules.reasoning)
            .field("calls", &rules.block.is_some())
            .field("answer", &rules.answer.len())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Constraint {
    /// What schemas ask for and decoding does not ensure: only those of tools that are not strict.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// How many of `ids`, from the first on, an output may begin with; a token that ends it included.
    ///
    /// # Errors
    /// [`ConstraintError::Step`].
    pub fn accepted(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Result<usize, ConstraintError> {
        let mut output = Constrained::new(self);
        for (index, id) in ids.iter().enumerate() {
            if !output.allowed()?.contains(*id) {
                return Ok(index);
            }
            if tokenizer.is_stop(*id) {
                return Ok(index + 1);
            }
            output.accept(*id, tokenizer)?;
        }
        Ok(ids.len())
    }
}

/// Constraints of a model's outputs. Shared: the vocabulary is searched through once, and what was compiled last is kept.
pub struct Constraints {
    tokenizer: Arc<Tokenizer>,
    vocabulary: Mutex<Option<Arc<Vocabulary>>>,
    /// The latest first.
    kept: Mutex<VecDeque<Constraint>>,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").finish_non_exhaustive()
    }
}

impl Constraints {
    /// For the model of `tokenizer`. Costs nothing until one is asked for.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, vocabulary: Mutex::default(), kept: Mutex::default() }
    }

    /// The constraint of the output that follows the prompt of `conversation`, which begins at `start`; none if it is
    /// free. `wish` is what a request adds to its conversation.
    ///
    /// Takes milliseconds, with large schemas up to seconds; the result is kept, so that the same tools are compiled once.
    ///
    /// # Errors
    /// [`ConstraintError`], whose text is meant for whoever asked.
    pub fn for_conversation(
        &self,
        conversation: &Conversation,
        start: StartState,
        wish: Option<&Wish>,
    ) -> Result<Option<Constraint>, ConstraintError> {
        match OutputConstraint::new(&self.tokenizer, conversation, start, wish)? {
            Some(rules) => self.constraint(rules).map(Some),
            None => Ok(None),
        }
    }

    fn constraint(&self, rules: OutputConstraint) -> Result<Constraint, ConstraintError> {
        if let Some(constraint) = self.find(&rules) {
            return Ok(constraint);
        }
        let vocabulary = self.vocabulary()?;
        let compiled = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
            let thread = builder.spawn_scoped(scope, || compile(&vocabulary, rules));
            let thread = thread.map_err(|error| error.to_string())?;
            thread.join().map_err(|_| "internal error: the compiler panicked".to_owned())
        });
        let failed = |problem| ConstraintError::Grammar { at: "grammar".to_owned(), problem };
        let constraint = Constraint(Arc::new(compiled.map_err(failed)??));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front(constraint.clone());
        kept.truncate(KEPT);
        Ok(constraint)
    }

    fn find(&self, rules: &OutputConstraint) -> Option<Constraint> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let index = kept.iter().position(|constraint| constraint.0.rules == *rules)?;
        let found = kept.remove(index)?;
        kept.push_front(found.clone());
        Some(found)
    }

    /// Made when the first constraint is asked for.
    fn vocabulary(&self) -> Result<Arc<Vocabulary>, ConstraintError> {
        let mut vocabulary = self.vocabulary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vocabulary) = &*vocabulary {
            return Ok(Arc::clone(vocabulary));
        }
        let made = Vocabulary::new(&self.tokenizer, &limits()).map_err(ConstraintError::Vocabulary)?;
        let made = Arc::new(made);
        *vocabulary = Some(Arc::clone(&made));
        Ok(made)
    }
}

/// Limits of the library: a step takes some 15 ms at most.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

fn compile(vocabulary: &Vocabulary, rules: OutputConstraint) -> Result<Compiled, ConstraintError> {
    let mut notes = rules.notes.clone();
    let block = rules.block.as_ref().map(|grammar| compile_grammar(vocabulary, grammar, &mut notes)).transpose()?;
    let answer = rules
        .answer
        .iter()
        .map(|grammar| compile_grammar(vocabulary, grammar, &mut notes))
        .collect::<Result<_, _>>()?;
    Ok(Compiled { rules, block, answer, notes, ids: Arc::clone(&vocabulary.ids) })
}

fn compile_grammar(
    vocabulary: &Vocabulary,
    grammar: &Grammar,
    notes: &mut Vec<String>,
) -> Result<Start, ConstraintError> {
    let parser = match vocabulary.parser(top_level(grammar, &grammar.schemas)) {
        Ok(parser) => parser,
        Err(whole) => {
            for inner in &grammar.inner {
                let alone = vocabulary.parser(TopLevelGrammar::from_lark(inner.lark.clone()));
                alone.map_err(|problem| ConstraintError::Grammar { at: inner.at.clone(), problem })?;
            }
            let schemas = without_refused(vocabulary, &grammar.schemas, notes)?;
            let at = if grammar.foreign { "response_format" } else { "tools" };
            let problem = |problem| ConstraintError::Grammar { at: at.to_owned(), problem };
            match schemas == grammar.schemas {
                // No schema is to blame.
                true => return Err(problem(whole)),
                false => vocabulary.parser(top_level(grammar, &schemas)).map_err(problem)?,
            }
        }
    };
    Ok(Start { parser: Mutex::new(parser), foreign: grammar.foreign })
}

/// The schemas, each tried by itself; those that the library does not take stand for any JSON, where that is permitted.
fn without_refused(
    vocabulary: &Vocabulary,
    schemas: &[Schema],
    notes: &mut Vec<String>,
) -> Result<Vec<Schema>, ConstraintError> {
    let mut taken = Vec::with_capacity(schemas.len());
    for schema in schemas {
        let mut schema = schema.clone();
        if let Err(problem) = vocabulary.parser(TopLevelGrammar::from_json_schema(schema.schema.clone())) {
            let problem = match schema.one_of.as_slice() {
                places @ [_, ..] if problem.contains("oneOf") => format!(
                    "the branches of oneOf at {} cannot be told apart by type, const or a required property; use anyOf",
                    places.join(", ")
                ),
                _ => problem,
            };
            if !schema.replaceable {
                return Err(ConstraintError::Grammar { at: schema.at, problem });
            }
            notes.push(format!("{}: {problem}; any JSON is taken", schema.at));
            schema.schema = json!({"x-guidance": schema.schema.get("x-guidance").unwrap_or(&Value::Null)});
        }
        taken.push(schema);
    }
    Ok(taken)
}

fn top_level(grammar: &Grammar, schemas: &[Schema]) -> TopLevelGrammar {
    let mut grammars = vec![GrammarWithLexer::from_lark(grammar.lark.clone())];
    grammars.extend(grammar.inner.iter().map(|inner| GrammarWithLexer {
        name: Some(inner.name.clone()),
        ..GrammarWithLexer::from_lark(inner.lark.clone())
    }));
    grammars.extend(schemas.iter().map(|schema| GrammarWithLexer {
        name: Some(schema.name.clone()),
        ..GrammarWithLexer::from_json_schema(schema.schema.clone())
    }));
    TopLevelGrammar { grammars, max_tokens: None }
}
