//! The config of the n-gram memory (spec section 1.4).

use crate::fields::Fields;

/// Most rows of one Engram table; the release's have 384 million.
const MAX_ENGRAM_ROWS: usize = 1 << 38;
/// Largest start of the search for primes, within what the primality test is exact for; the release has 16 million.
const MAX_ENGRAM_VOCAB: usize = u32::MAX as usize;
/// Most hash columns of all Engram layers together; the release has 48.
const MAX_ENGRAM_COLUMNS: usize = 4096;

/// The n-gram memory (spec section 3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngramConfig {
    /// Layers that read it, ascending.
    pub layer_ids: Vec<usize>,
    /// Rows of each of those layers' tables.
    pub num_embeddings: Vec<u64>,
    /// Longest n-gram; 2 is the shortest.
    pub max_ngram_size: usize,
    /// Where the search for a column's prime starts.
    pub vocab_size: u64,
    /// Hash columns per n-gram length.
    pub n_heads: usize,
    /// Width of a row.
    pub head_dim: usize,
    /// The token whose class stands for what is not there.
    pub pad_token_id: u32,
    /// Classes of the token map.
    pub compressed_vocab_size: u32,
}

impl EngramConfig {
    pub(super) fn read(text: &Fields<'_>, layers: usize, vocab_size: usize) -> Self {
        let rows = |count: usize| count as u64;
        let engram = Self {
            layer_ids: text.integers("engram_layer_ids", layers, 0..=layers - 1),
            num_embeddings: text
                .integers("engram_num_embeddings", layers, 1..=MAX_ENGRAM_ROWS)
                .into_iter()
                .map(rows)
                .collect(),
            max_ngram_size: text.integer("engram_max_ngram_size", 2..=16),
            vocab_size: text.integer("engram_vocab_size", 2..=MAX_ENGRAM_VOCAB) as u64,
            n_heads: text.integer("engram_n_heads", 1..=256),
            head_dim: text.integer("engram_head_dim", 32..=65_536),
            pad_token_id: text.integer("engram_pad_token_id", 0..=vocab_size - 1) as u32,
            compressed_vocab_size: text.integer("engram_compressed_vocab_size", 1..=vocab_size) as u32,
        };
        if !engram.layer_ids.is_sorted_by(|a, b| a < b) {
            text.wrong("engram_layer_ids", "is not ascending");
        }
        let (tables, layers) = (engram.num_embeddings.len(), engram.layer_ids.len());
        if tables != layers {
            text.wrong("engram_num_embeddings", format!("has {tables} entries for {layers} engram_layer_ids"));
        }
        if engram.columns().saturating_mul(layers) > MAX_ENGRAM_COLUMNS {
            text.wrong("engram_n_heads", format!("gives more than {MAX_ENGRAM_COLUMNS} hash columns"));
        }
        engram
    }

    /// Rows that one layer reads per token: n-gram lengths times heads.
    pub fn columns(&self) -> usize {
        (self.max_ngram_size - 1) * self.n_heads
    }
}
