//! One expert being read: which of its pieces are on their way, and the matrices that they are packed into.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cachalot_kernels::Matrix;

use crate::{Expert, ExpertError};

/// A place for one expert that is being read; used again and again.
pub(crate) struct Load {
    /// Above, a number that changes with every use, so that reads left over from an earlier one are recognised; below,
    /// one bit for each piece that has been issued, or must not be any more. One word: both are decided at once.
    claimed: AtomicU64,
    key: AtomicU32,
    slot: AtomicU32,
    /// Pieces that have not arrived.
    missing: AtomicU32,
    /// Someone waits for it.
    pub(crate) demanded: AtomicBool,
    /// Nobody wants it any more, and part of it has not been read.
    abandoned: AtomicBool,
    matrices: [Mutex<Matrix>; 3],
    error: Mutex<Option<ExpertError>>,
}

/// What became of a load that is not wanted any more; with the pieces, a bit each, that will not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// All of it is on its way: it ends as if it were wanted.
    TooLate,
    /// Some pieces are on their way; the last of them ends it.
    Ending(u64),
    /// Nothing is on its way.
    Ended(u64),
}

/// All pieces claimed.
const ALL: u64 = u32::MAX as u64;

/// What a read's token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) generation: u32,
    pub(crate) load: usize,
    pub(crate) piece: usize,
}

impl Token {
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | (self.load as u64) << 8 | self.piece as u64
    }

    pub(crate) fn unpack(token: u64) -> Self {
        Self { generation: (token >> 32) as u32, load: (token as u32 >> 8) as usize, piece: (token & 0xff) as usize }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    pub(crate) fn new() -> Self {
        let matrices = [(); 3].map(|()| Mutex::new(Matrix::empty()));
        Self {
            claimed: AtomicU64::new(ALL),
            key: AtomicU32::new(0),
            slot: AtomicU32::new(0),
            missing: AtomicU32::new(0),
            demanded: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            matrices,
            error: Mutex::default(),
        }
    }

    /// Begins to read expert `key` in `pieces` pieces into the matrices of `expert`, which lies in `slot`; returns the
    /// generation.
    pub(crate) fn begin(&self, key: u32, slot: u32, pieces: usize, demanded: bool, expert: &mut Expert) -> u32 {
        let parts = [&mut expert.w1, &mut expert.w3, &mut expert.w2];
        for (mine, theirs) in self.matrices.iter().zip(parts) {
            *lock(mine) = std::mem::replace(theirs, Matrix::empty());
        }
        *lock(&self.error) = None;
        self.key.store(key, Ordering::SeqCst);
        self.slot.store(slot, Ordering::SeqCst);
        self.abandoned.store(false, Ordering::SeqCst);
        self.missing.store(pieces as u32, Ordering::SeqCst);
        self.demanded.store(demanded, Ordering::SeqCst);
        let generation = self.generation().wrapping_add(1);
        self.claimed.store(u64::from(generation) << 32, Ordering::SeqCst);
        generation
    }

    pub(crate) fn key(&self) -> u32 {
        self.key.load(Ordering::SeqCst)
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot.load(Ordering::SeqCst)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    pub(crate) fn generation(&self) -> u32 {
        (self.claimed.load(Ordering::SeqCst) >> 32) as u32
    }

    /// Whether the piece of `token` has to be read; says so once.
    pub(crate) fn claim(&self, token: Token) -> bool {
        let bit = 1u64 << token.piece;
        let claim = |claimed: u64| {
            let open = (claimed >> 32) as u32 == token.generation && claimed & bit == 0;
            open.then_some(claimed | bit)
        };
        self.claimed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, claim).is_ok()
    }

    /// Whether a piece has not been issued.
    pub(crate) fn is_waiting(&self, piece: usize) -> bool {
        self.claimed.load(Ordering::SeqCst) >> piece & 1 == 0
    }

    /// Gives up the pieces, of `pieces`, that have not been issued. The load ends when the others have arrived.
    pub(crate) fn abandon(&self, pieces: usize) -> Abandoned {
        let all = |claimed: u64| Some(claimed | ALL);
        let claimed = self.claimed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, all).unwrap_or_else(|same| same);
        let unissued = (0..pieces).filter(|piece| claimed >> piece & 1 == 0).count() as u32;
        if unissued == 0 {
            return Abandoned::TooLate;
        }
        self.abandoned.store(true, Ordering::SeqCst);
        let open = ((1u64 << pieces) - 1) & !claimed;
        if self.missing.fetch_sub(unissued, Ordering::SeqCst) == unissued {
            Abandoned::Ended(open)
        } else {
            Abandoned::Ending(open)
        }
    }

    pub(crate) fn with_matrix<T>(&self, matrix: usize, work: impl FnOnce(&mut Matrix) -> T) -> T {
        work(&mut lock(&self.matrices[matrix]))
    }

    pub(crate) fn fail(&self, error: ExpertError) {
        lock(&self.error).get_or_insert(error);
    }

    /// Books the arrival of a piece; true if it was the last.
    pub(crate) fn piece_done(&self) -> bool {
        self.missing.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// Puts the matrices back into `expert`; the error if a piece failed.
    pub(crate) fn end(&self, expert: &mut Expert) -> Result<(), ExpertError> {
        let parts = [&mut expert.w1, &mut expert.w3, &mut expert.w2];
        for (mine, theirs) in self.matrices.iter().zip(parts) {
            *theirs = std::mem::replace(&mut lock(mine), Matrix::empty());
        }
        self.claimed.fetch_or(ALL, Ordering::SeqCst);
        lock(&self.error).take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank() -> Expert {
        Expert { w1: Matrix::empty(), w3: Matrix::empty(), w2: Matrix::empty() }
    }

    #[test]
    fn every_piece_is_claimed_once_and_stale_tokens_never() {
        let (load, mut expert) = (Load::new(), blank());
        let generation = load.begin(7, 5, 2, false, &mut expert);
        let token = |generation, piece| Token { generation, load: 3, piece };
        assert_eq!(Token::unpack(token(9, 5).pack()), token(9, 5));
        assert!(load.is_waiting(1) && load.claim(token(generation, 1)));
        assert!(!load.is_waiting(1) && !load.claim(token(generation, 1)));
        assert!(load.claim(token(generation, 0)));
        assert_eq!(load.abandon(2), Abandoned::TooLate);
        assert!(!load.piece_done() && load.piece_done());
        load.end(&mut expert).expect("no error");
        let next = load.begin(8, 5, 2, true, &mut expert);
        assert!(!load.claim(token(generation, 0)) && load.claim(token(next, 0)));
    }

    #[test]
    fn what_is_abandoned_ends_with_its_last_piece_on_the_way() {
        let (load, mut expert) = (Load::new(), blank());
        let token = |generation, piece| Token { generation, load: 3, piece };
        let generation = load.begin(7, 5, 3, false, &mut expert);
        assert_eq!(load.abandon(3), Abandoned::Ended(0b111));
        assert!(!load.claim(token(generation, 0)));
        load.end(&mut expert).expect("no error");
        let generation = load.begin(7, 5, 3, false, &mut expert);
        assert!(load.claim(token(generation, 1)));
        assert_eq!((load.abandon(3), load.is_abandoned()), (Abandoned::Ending(0b101), true));
        assert!(!load.claim(token(generation, 0)) && load.piece_done());
        load.end(&mut expert).expect("no error");
        let generation = load.begin(7, 5, 3, false, &mut expert);
        assert!(load.claim(token(generation, 1)) && !load.piece_done() && !load.is_abandoned());
        assert_eq!(load.abandon(3), Abandoned::Ended(0b101), "what was on its way has arrived");
    }
}
