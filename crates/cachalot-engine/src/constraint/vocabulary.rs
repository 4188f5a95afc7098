//! A model's vocabulary as the grammar library wants it.
//!
//! Owns the trie of all tokens and the tables made of it. Control tokens stand apart in it: no text leads to one.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use cachalot_text::Tokenizer;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser};

/// Longest token that can be chosen under a grammar, in bytes; the trie has no room for longer ones.
const MAX_TOKEN_BYTES: usize = 512;

/// A vocabulary, searched for what a grammar allows.
pub(crate) struct Vocabulary {
    factory: ParserFactory,
    /// Its control tokens.
    pub(super) ids: Arc<Ids>,
}

/// Control tokens that matter.
pub(super) struct Ids {
    pub(super) think_close: u32,
    /// Stands inside the tags of calls.
    pub(super) marker: u32,
    pub(super) eos: u32,
    /// All that end an output.
    pub(super) stops: Vec<u32>,
    /// All control tokens: bit `id % 32` of number `id / 32`.
    pub(super) added: Vec<u32>,
}

impl Ids {
    fn new(tokenizer: &Tokenizer) -> Self {
        let size = tokenizer.vocab_size() as u32;
        let mut added = vec![0u32; size.div_ceil(32) as usize];
        (0..size).filter(|id| tokenizer.is_added(*id)).for_each(|id| added[id as usize / 32] |= 1 << (id % 32));
        let markers = tokenizer.markers();
        Self {
            think_close: markers.think_close,
            marker: markers.dsml,
            eos: markers.eos,
            stops: (0..size).filter(|id| tokenizer.is_stop(*id)).collect(),
            added,
        }
    }
}

impl Vocabulary {
    /// The vocabulary of `tokenizer`: some 30 MB and 200 ms for the released ones.
    pub(super) fn new(tokenizer: &Tokenizer, limits: &ParserLimits) -> Result<Self, String> {
        let size = tokenizer.vocab_size() as u32;
        let marked = TokTrie::SPECIAL_TOKEN_MARKER;
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                match tokenizer.is_added(id) {
                    _ if bytes.len() > MAX_TOKEN_BYTES => Vec::new(),
                    true => [&[marked], bytes].concat(),
                    // The byte that marks control tokens occurs in no text.
                    false if bytes.contains(&marked) => Vec::new(),
                    false => bytes.to_vec(),
                }
            })
            .collect();
        // The trie asserts its limits.
        let factory = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(size, tokenizer.markers().eos), &words);
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&environment)
        }));
        let mut factory = factory.map_err(|error| plain(&error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits.clone();
        Ok(Self { factory, ids: Arc::new(Ids::new(tokenizer)) })
    }

    /// A parser at the start of `grammar`.
    ///
    /// # Errors
    /// What the library says of the grammar, in one line or a few.
    pub(super) fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        let parser = self.factory.create_parser_from_init_default(GrammarInit::Serialized(grammar));
        let mut parser = parser.map_err(|error| plain(&error.to_string()))?;
        parser.start_without_prompt();
        Ok(parser)
    }
}

/// A message of the library without its traces and excerpts.
pub(super) fn plain(message: &str) -> String {
    let end = ["\n<backtrace>", "\n<non-verbose/>", "\n<state>"].iter().filter_map(|mark| message.find(mark)).min();
    let message = message[..end.unwrap_or(message.len())].trim();
    message.chars().take(500).collect()
}
