//! What a V4 sequence keeps and reads (spec sections 4.1, 4.3 and 8.3).

use super::config::CACHE_GROUP;
use super::{Config, Role};

impl Config {
    /// Bytes of one window or compressed entry as the vendor packs it: E4M3 without rotation, BF16 with, a scale per
    /// 64 of the former, padded to 8 bytes. 584 in the releases.
    pub fn entry_bytes(&self) -> u64 {
        let (rotated, head) = (self.qk_rope_head_dim, self.head_dim);
        let plain = head - rotated;
        (plain + 2 * rotated + plain.div_ceil(CACHE_GROUP)).next_multiple_of(8) as u64
    }

    /// Bytes of one index key: E2M1 with a scale per 32. 68 in the releases.
    pub fn index_key_bytes(&self) -> u64 {
        (self.index_head_dim / 2 + self.index_head_dim / 32) as u64
    }

    /// Bytes of compressed entries and index keys that a sequence of `tokens` tokens keeps.
    pub fn entry_cache_bytes(&self, tokens: u64) -> u64 {
        let of = |role: Role| match role {
            Role::Csa => self.entry_bytes() + self.index_key_bytes(),
            _ => self.entry_bytes(),
        };
        self.compressed().map(|(_, plan)| tokens / plan.ratio as u64 * of(plan.role)).sum()
    }

    /// Bytes of a sequence's windows.
    pub fn window_cache_bytes(&self) -> u64 {
        (self.num_hidden_layers * self.sliding_window) as u64 * self.entry_bytes()
    }

    /// Bytes of the float32 keys and gates of windows that are not complete: of a CSA layer two windows of two series,
    /// for its entries and its index keys, of an HCA layer one of one.
    pub fn rolling_cache_bytes(&self) -> u64 {
        let of = |role: Role| match role {
            Role::Sliding => 0,
            Role::Csa => 8 * 2 * (self.head_dim + self.index_head_dim),
            Role::Hca => 128 * self.head_dim,
        };
        self.layers.iter().map(|plan| 2 * 4 * of(plan.role) as u64).sum()
    }

    /// Bytes of a sequence's state that do not depend on its length.
    pub fn fixed_cache_bytes(&self) -> u64 {
        self.window_cache_bytes() + self.rolling_cache_bytes()
    }

    /// Bytes of caches that a token at position `tokens - 1` reads: windows, chosen or all entries, index keys.
    pub fn cache_read_bytes(&self, tokens: u64) -> u64 {
        let window = self.num_hidden_layers as u64 * tokens.min(self.sliding_window as u64) * self.entry_bytes();
        let compressed = self.compressed().map(|(_, plan)| {
            let entries = tokens / plan.ratio as u64;
            match plan.role {
                Role::Csa => {
                    entries.min(self.index_topk as u64) * self.entry_bytes() + entries * self.index_key_bytes()
                }
                _ => entries * self.entry_bytes(),
            }
        });
        window + compressed.sum::<u64>()
    }
}
