//! Experts read from the checkpoint on first use, the recently used ones kept up to a budget.

use crate::recent::Recent;
use crate::{Expert, ExpertError, ExpertSource};
use cachalot_checkpoint::{Checkpoint, CheckpointError};
use cachalot_kernels::Matrix;
use cachalot_runtime::Pool;
use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Threads that read and pack at the same time.
const READERS: usize = 8;
/// The matrices of an expert, in the order in which they are read.
const MATRICES: [&str; 3] = ["w1", "w3", "w2"];

/// What a [`LazyExperts`] has done so far, and holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertStats {
    /// Experts that were asked for and kept.
    pub hits: u64,
    /// Experts that had to be read.
    pub misses: u64,
    /// Experts that are kept.
    pub kept: usize,
    /// Bytes of the experts that are kept.
    pub kept_bytes: u64,
}

/// Reads an expert's tensors when it is first asked for.
///
/// Memory: the budget, and what callers hold of the experts that they were given.
pub struct LazyExperts {
    checkpoint: Arc<Checkpoint>,
    layers: usize,
    experts: usize,
    readers: Pool,
    kept: Mutex<Kept>,
}

struct Kept {
    recent: Recent<(usize, u32), Arc<Expert>>,
    hits: u64,
    misses: u64,
}

impl LazyExperts {
    /// Experts `0..experts` of layers `0..layers`, named `layers.L.ffn.experts.E`; `budget_bytes` of them are kept.
    pub fn new(checkpoint: Arc<Checkpoint>, layers: usize, experts: usize, budget_bytes: u64) -> Self {
        let kept = Kept { recent: Recent::new(budget_bytes), hits: 0, misses: 0 };
        Self { checkpoint, layers, experts, readers: Pool::for_reading(READERS), kept: Mutex::new(kept) }
    }

    /// What it has done so far.
    pub fn stats(&self) -> ExpertStats {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        ExpertStats { hits: kept.hits, misses: kept.misses, kept: kept.recent.len(), kept_bytes: kept.recent.bytes() }
    }

    fn check(&self, layer: usize, experts: &[u32]) -> Result<(), ExpertError> {
        let outside = |expert: &&u32| layer >= self.layers || **expert as usize >= self.experts;
        match experts.iter().find(outside) {
            Some(&expert) => Err(ExpertError::NoExpert { layer, expert, layers: self.layers, experts: self.experts }),
            None => Ok(()),
        }
    }

    /// Reads the experts `missing` of one layer, matrix by matrix on all readers.
    fn read(&self, layer: usize, missing: &[u32]) -> Result<Vec<Arc<Expert>>, ExpertError> {
        let mut matrices: Vec<OnceLock<Result<Matrix, CheckpointError>>> = Vec::new();
        matrices.resize_with(missing.len() * MATRICES.len(), OnceLock::new);
        self.readers.run(matrices.len(), |job| {
            let (expert, matrix) = (missing[job / MATRICES.len()], MATRICES[job % MATRICES.len()]);
            let mut name = String::with_capacity(64);
            // Writing to a string cannot fail.
            let _ = write!(name, "layers.{layer}.ffn.experts.{expert}.{matrix}.weight");
            let _ = matrices[job].set(self.checkpoint.matrix(&name));
        });
        let mut read = matrices.into_iter().filter_map(OnceLock::into_inner);
        let mut experts = Vec::with_capacity(missing.len());
        for &expert in missing {
            let mut next = || match read.next() {
                Some(Ok(matrix)) => Ok(matrix),
                Some(Err(source)) => Err(ExpertError::Read { layer, expert, source: Box::new(source) }),
                None => Err(ExpertError::NoExpert { layer, expert, layers: self.layers, experts: self.experts }),
            };
            let (w1, w3, w2) = (next()?, next()?, next()?);
            experts.push(Arc::new(Expert { w1, w3, w2 }));
        }
        Ok(experts)
    }
}

impl ExpertSource for LazyExperts {
    fn fetch(&self, layer: usize, experts: &[u32], out: &mut Vec<Arc<Expert>>) -> Result<(), ExpertError> {
        out.clear();
        self.check(layer, experts)?;
        let mut found: Vec<Option<Arc<Expert>>> = Vec::new();
        let mut missing = Vec::new();
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            out.extend(experts.iter().map_while(|expert| kept.recent.get((layer, *expert))));
            if out.len() < experts.len() {
                found.extend(out.drain(..).map(Some));
                found.extend(experts[found.len()..].iter().map(|expert| kept.recent.get((layer, *expert))));
            }
            missing.extend(experts.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(expert, _)| *expert));
            kept.hits += (experts.len() - missing.len()) as u64;
            missing.sort_unstable();
            missing.dedup();
            kept.misses += missing.len() as u64;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let read = self.read(layer, &missing)?;
        let place = |expert: &u32| missing.binary_search(expert).ok();
        let asked = experts.iter().zip(found);
        out.extend(asked.filter_map(|(expert, found)| found.or_else(|| place(expert).map(|at| Arc::clone(&read[at])))));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (expert, value) in missing.iter().zip(read) {
            let bytes = value.bytes() as u64;
            kept.recent.insert((layer, *expert), value, bytes);
        }
        Ok(())
    }
}
