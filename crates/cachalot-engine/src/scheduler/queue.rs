//! Jobs that wait, and how the tokens of a step are shared out: plain data, without a model, a clock or a lock.

use std::collections::{HashMap, VecDeque};

/// First come, first served within a client; between clients, whoever has least running is next.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: VecDeque<(u64, T)>,
}

impl<T> Queue<T> {
    /// Nobody waits.
    pub fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts `item` of `client` last.
    pub fn push(&mut self, client: u64, item: T) {
        self.waiting.push_back((client, item));
    }

    /// The next one where `running` says how many of each client's run: the oldest of those whose client has fewest.
    pub fn next(&mut self, running: &HashMap<u64, usize>) -> Option<(u64, T)> {
        let busy = |client: &u64| running.get(client).copied().unwrap_or(0);
        let best = self.waiting.iter().enumerate().min_by_key(|(index, (client, _))| (busy(client), *index));
        let index = best.map(|(index, _)| index)?;
        self.waiting.remove(index)
    }

    /// Puts back what [`Queue::next`] gave: it stays the oldest.
    pub fn put_back(&mut self, client: u64, item: T) {
        self.waiting.push_front((client, item));
    }

    /// Takes out all for which `leaves` holds; it is told how many wait before each.
    pub fn take_out(&mut self, mut leaves: impl FnMut(usize, &mut T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for (client, mut item) in self.waiting.drain(..) {
            if leaves(kept.len(), &mut item) { out.push(item) } else { kept.push_back((client, item)) }
        }
        self.waiting = kept;
        out
    }
}

/// Divides `budget` tokens among prompts that wait for `waiting` tokens each: equal shares, and what the short ones do
/// not need goes to the long ones. So a short prompt never waits for the end of a long one, and none starves.
pub(super) fn shares(waiting: &[usize], budget: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_by_key(|&index| waiting[index]);
    let (mut left, mut shares) = (budget, vec![0; waiting.len()]);
    for (done, &index) in order.iter().enumerate() {
        shares[index] = waiting[index].min(left / (waiting.len() - done));
        left -= shares[index];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns_and_stay_in_their_order() {
        let mut queue = Queue::new();
        for (client, item) in [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e")] {
            queue.push(client, item);
        }
        let mut running = HashMap::new();
        let mut order = Vec::new();
        while let Some((client, item)) = queue.next(&running) {
            *running.entry(client).or_default() += 1;
            order.push(item);
        }
        assert_eq!(order, ["a", "d", "e", "b", "c"]);
    }

    #[test]
    fn whoever_leaves_is_taken_out_and_nobody_else() {
        let mut queue = Queue::new();
        for item in 0..6 {
            queue.push(0, item);
        }
        let mut ahead = Vec::new();
        let out = queue.take_out(|before, item| {
            ahead.push(before);
            *item % 2 == 1
        });
        assert_eq!((out, ahead), (vec![1, 3, 5], vec![0, 1, 1, 2, 2, 3]));
        let (client, first) = queue.next(&HashMap::new()).unwrap();
        queue.put_back(client, first);
        assert_eq!(queue.next(&HashMap::new()), Some((0, 0)));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn shares_are_equal_until_a_prompt_needs_less() {
        assert_eq!(shares(&[1000, 3, 1000], 203), [100, 3, 100]);
        assert_eq!(shares(&[5, 5], 128), [5, 5]);
        assert_eq!(shares(&[40_000], 128), [128]);
        assert_eq!(shares(&[], 128), [0usize; 0]);
        // More prompts than tokens: some wait, and who waits is the longest, but something is done.
        let few = shares(&[9; 10], 4);
        assert_eq!(few.iter().sum::<usize>(), 4);
        for budget in 1..60 {
            let waiting = [7, 1, 30, 12];
            let shares = shares(&waiting, budget);
            assert_eq!(shares.iter().sum::<usize>(), budget.min(50), "{budget}");
            assert!(shares.iter().zip(waiting).all(|(share, waiting)| *share <= waiting));
        }
    }
}
