//! A fixture directory: a checkpoint, and the reference's tensors with the limits of how close to come.

use std::path::PathBuf;
use std::sync::Arc;

use cachalot_engine::engine::{CacheChoice, Engine, EngineOptions};
use cachalot_model::Arithmetic;
use cachalot_storage::Directory;
use safetensors::SafeTensors;
use serde_json::Value;

/// The fixtures of the repository.
pub const NAMES: [&str; 4] = ["v41-tiny", "v41-ones-first", "v41-pairs", "v4-tiny"];

pub struct Fixture {
    pub name: &'static str,
    pub directory: PathBuf,
    pub report: Value,
    bytes: Vec<u8>,
}

impl Fixture {
    pub fn open(name: &'static str) -> Self {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
        let read = |file: &str| std::fs::read(directory.join(file)).unwrap();
        Self {
            name,
            report: serde_json::from_slice(&read("expected.json")).unwrap(),
            bytes: read("expected.safetensors"),
            directory,
        }
    }

    /// With the reference's caches.
    pub fn engine(&self, arithmetic: Arithmetic, threads: usize) -> Arc<Engine> {
        self.engine_with(arithmetic, CacheChoice::Reference, threads)
    }

    pub fn engine_with(&self, arithmetic: Arithmetic, cache: CacheChoice, threads: usize) -> Arc<Engine> {
        let options = EngineOptions { arithmetic, cache, threads: Some(threads), ..EngineOptions::default() };
        Arc::new(Engine::open(Arc::new(Directory::new(&self.directory)), &options, &mut |_| ()).unwrap())
    }

    pub fn tensors(&self) -> Tensors<'_> {
        Tensors(SafeTensors::deserialize(&self.bytes).unwrap())
    }

    /// The prompts of text, shortest first.
    pub fn prompts(&self) -> Vec<&str> {
        let prompts = self.report["prompts"].as_object().unwrap();
        let text = prompts.iter().filter(|(_, prompt)| prompt.get("text").is_some());
        let mut names: Vec<_> = text.map(|(name, prompt)| (prompt["length"].as_u64(), name.as_str())).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, name)| name).collect()
    }

    pub fn limit(&self, prompt: &str, arithmetic: &str, quantity: &str, measure: &str) -> Option<f64> {
        self.report["prompts"][prompt]["tolerances"][arithmetic][quantity][measure].as_f64()
    }
}

pub struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    pub fn has(&self, name: &str) -> bool {
        self.0.tensor(name).is_ok()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub fn i32(&self, name: &str) -> Vec<i32> {
        let tensor = self.0.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::I32, "{name}");
        tensor.data().as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    }

    pub fn ids(&self, prompt: &str) -> Vec<u32> {
        self.i32(&format!("{prompt}.input_ids")).into_iter().map(|id| id as u32).collect()
    }

    /// The recorded tensors of one quantity, layer by layer.
    pub fn layers(&self, prompt: &str, quantity: &str) -> Vec<String> {
        let (start, end) = (format!("{prompt}.f32.layer"), format!(".{quantity}"));
        let mut names: Vec<_> =
            self.0.names().into_iter().filter(|name| name.starts_with(&start) && name.ends_with(&end)).collect();
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect()
    }
}

/// How far logits are from the reference's.
#[derive(Debug, Default)]
pub struct Distance {
    /// Median over the positions of the largest difference.
    pub max_abs_p50: f64,
    pub max_abs: f64,
    pub mean_kl: f64,
}

/// Compares rows of `vocabulary` logits.
pub fn distance(ours: &[f32], theirs: &[f32], vocabulary: usize) -> Distance {
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().all(|logit| logit.is_finite()));
    let log_softmax = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
        row.iter().map(|&x| f64::from(x - max) - sum.ln()).collect::<Vec<_>>()
    };
    let (mut worst, mut divergence) = (Vec::new(), 0.0);
    for (ours, theirs) in ours.chunks(vocabulary).zip(theirs.chunks(vocabulary)) {
        worst.push(ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max));
        let (p, q) = (log_softmax(theirs), log_softmax(ours));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
    let count = worst.len();
    worst.sort_unstable_by(f64::total_cmp);
    let p50 = (worst[(count - 1) / 2] + worst[count / 2]) / 2.0;
    Distance { max_abs_p50: p50, max_abs: worst[count - 1], mean_kl: divergence / count as f64 }
}
