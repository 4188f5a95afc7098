//! Choosing the best entries and blocks, with ties going to the lower index (spec section 3.8, steps 4 to 6).

use super::buffer::keep_rows;

/// A list of at most `limit` ids per row, ascending.
pub struct Lists {
    limit: usize,
    counts: Vec<u32>,
    ids: Vec<u32>,
}

impl Default for Lists {
    fn default() -> Self {
        Self { limit: 1, counts: Vec::new(), ids: Vec::new() }
    }
}

/// Selected entries per row.
pub type Selection = Lists;
/// Candidate blocks per row.
pub type Candidates = Lists;

/// One row's list.
pub struct Chosen<'a> {
    count: &'a mut u32,
    ids: &'a mut [u32],
}

impl Lists {
    /// Empties the lists of `rows` rows.
    pub fn reset(&mut self, rows: usize, limit: usize) {
        self.limit = limit.max(1);
        self.counts.clear();
        self.counts.resize(rows, 0);
        self.ids.resize(rows * self.limit, 0);
    }

    /// Keeps the lists of the rows `kept`, ascending, of `rows` rows; nothing to keep where there are no such lists.
    pub fn keep(&mut self, rows: usize, kept: &[usize]) {
        if self.counts.len() == rows {
            keep_rows(&mut self.ids, rows, kept);
            keep_rows(&mut self.counts, rows, kept);
        }
    }

    /// Rows that have a list.
    pub fn rows(&self) -> usize {
        self.counts.len()
    }

    /// The list of `row`; empty where nothing was ever selected.
    pub fn of(&self, row: usize) -> &[u32] {
        let count = self.counts.get(row).map_or(0, |&count| count as usize);
        self.ids.get(row * self.limit..row * self.limit + count).unwrap_or_default()
    }

    /// All rows, to be written.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = Chosen<'_>> {
        self.counts.iter_mut().zip(self.ids.chunks_exact_mut(self.limit)).map(|(count, ids)| Chosen { count, ids })
    }
}

impl Chosen<'_> {
    pub fn ids(&self) -> &[u32] {
        &self.ids[..*self.count as usize]
    }

    pub fn extend(&mut self, ids: impl Iterator<Item = u32>) {
        for id in ids {
            self.ids[*self.count as usize] = id;
            *self.count += 1;
        }
    }
}

/// Orders by descending score, then ascending index, as one integer: smaller is better.
fn rank(score: f32, index: usize) -> u64 {
    // Adding zero makes the two zeros one; flipping makes the bits of a float ascend with its value.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | index as u64
}

/// Puts the `limit` best of `order` into `out`, ascending by index.
fn keep_best(order: &mut [u64], limit: usize, out: &mut Chosen) {
    let best = if order.len() > limit {
        order.select_nth_unstable(limit);
        &mut order[..limit]
    } else {
        order
    };
    best.iter_mut().for_each(|rank| *rank &= u64::from(u32::MAX));
    best.sort_unstable();
    out.extend(best.iter().map(|&index| index as u32));
}

/// Chooses the `limit` best of `entries` by `scores`.
pub fn choose(
    scores: &[f32],
    entries: impl Iterator<Item = usize>,
    limit: usize,
    order: &mut Vec<u64>,
    out: &mut Chosen,
) {
    order.clear();
    order.extend(entries.map(|entry| rank(scores[entry], entry)));
    keep_best(order, limit, out);
}

/// Chooses the `limit` best blocks of `block` entries by their best score; the newest block is always among them.
pub fn best_blocks(scores: &[f32], block: usize, limit: usize, order: &mut Vec<u64>, out: &mut Chosen) {
    let newest = scores.len().div_ceil(block) - 1;
    order.clear();
    order.extend(scores.chunks(block).enumerate().map(|(index, scores)| {
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        rank(if index == newest { f32::INFINITY } else { best }, index)
    }));
    keep_best(order, limit, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f32], limit: usize) -> Vec<u32> {
        let mut lists = Lists::default();
        lists.reset(1, limit);
        let mut rows = lists.rows_mut();
        choose(scores, 0..scores.len(), limit, &mut Vec::new(), &mut rows.next().unwrap());
        drop(rows);
        lists.of(0).to_vec()
    }

    #[test]
    fn the_best_win_and_ties_go_to_the_lower_index() {
        assert_eq!(chosen(&[1.0, -2.0, 3.0, 1.0, 1.0], 3), [0, 2, 3]);
        assert_eq!(chosen(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert_eq!(chosen(&[-0.0, 0.0, 0.0], 2), [0, 1]);
        assert_eq!(chosen(&[-3.0, -1.0, -2.0], 2), [1, 2]);
        assert_eq!(chosen(&[5.0, 4.0], 3), [0, 1]);
    }

    #[test]
    fn the_newest_block_is_pinned() {
        let mut lists = Lists::default();
        lists.reset(1, 2);
        let scores = [1.0, 9.0, 5.0, 5.0, 7.0, 0.0, -4.0];
        best_blocks(&scores, 2, 2, &mut Vec::new(), &mut lists.rows_mut().next().unwrap());
        assert_eq!(lists.of(0), [0, 3]);
    }
}
