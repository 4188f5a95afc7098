//! Which build of V4 a checkpoint is: how its weights are stored, and which parts it has (spec sections 1.3 and 2.4).
//!
//! Owns the rule that tensors decide, not the config: the number and kind of draft stages and the format of the
//! experts are declared wrongly in some releases.

use super::{Config, FP8_BLOCK};
use crate::Dtype;
use crate::family::MAX_STAGES;
use crate::family::Weights;
use crate::fields::Fields;

/// The draft module of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draft {
    /// One block that predicts the token after next.
    Mtp {
        /// Whether it comes with copies of embedding and head, as in the `-Base` builds.
        copies: bool,
    },
    /// The stages of [`DsparkConfig`](crate::family::DsparkConfig), which draft a block of tokens at once.
    Dspark,
}

/// How a checkpoint's weights are stored, and which parts it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// How projections and shared experts are stored.
    pub dense: Weights,
    /// How routed experts are stored.
    pub experts: Weights,
    /// The draft module.
    pub draft: Option<Draft>,
    /// Whether routers have a bias for images, and those of hash-routed layers one for text.
    pub image_routing: bool,
    /// Whether there is an image path.
    pub vision: bool,
}

/// A tensor that a checkpoint holds; the type is unknown while its shard's header has not arrived.
pub(crate) type HeldTensor<'a> = (&'a str, Option<Dtype>);

impl Build {
    /// What the config declares.
    pub(super) fn declared(root: &Fields<'_>, quantised: bool, dspark: bool, vision: bool) -> Self {
        let fp8 = Weights::Fp8 { block: FP8_BLOCK };
        let says_fp8 = root.optional("expert_dtype").is_some_and(|name| name.as_str() == Some("fp8"));
        let mtp = root.optional("num_nextn_predict_layers").is_some_and(|stages| stages.as_u64() != Some(0));
        Self {
            dense: if quantised { fp8 } else { Weights::Plain },
            experts: match (quantised, says_fp8) {
                (false, _) => Weights::Plain,
                (true, true) => fp8,
                (true, false) => Weights::Fp4,
            },
            draft: if dspark { Some(Draft::Dspark) } else { mtp.then_some(Draft::Mtp { copies: false }) },
            image_routing: vision,
            vision,
        }
    }
}

/// The format of linear layers whose weights have this type.
fn weights(dtype: Dtype) -> Option<Weights> {
    match dtype {
        Dtype::I8 => Some(Weights::Fp4),
        Dtype::F8_E4M3 => Some(Weights::Fp8 { block: FP8_BLOCK }),
        Dtype::BF16 | Dtype::F32 => Some(Weights::Plain),
        Dtype::F8_E8M0 | Dtype::I64 => None,
    }
}

impl Config {
    /// Replaces what the config declares of its [`Build`] by what the tensors show; `held` are ascending by name.
    pub(crate) fn settle(&mut self, held: &[HeldTensor<'_>]) {
        let find = |name: &str| held.binary_search_by(|(held, _)| (*held).cmp(name)).ok().map(|place| held[place].1);
        let format = |name: &str, declared| find(name).flatten().and_then(weights).unwrap_or(declared);
        let any = |prefixes: &[&str]| held.iter().any(|(name, _)| prefixes.iter().any(|start| name.starts_with(start)));
        let there = |name: &str| find(name).is_some();
        let declared = self.build;
        let draft = if there("mtp.0.main_proj.weight") {
            Some(Draft::Dspark)
        } else if there("mtp.0.e_proj.weight") {
            Some(Draft::Mtp { copies: there("mtp.0.emb.tok_emb.weight") || there("mtp.0.head.weight") })
        } else {
            declared.draft.filter(|_| any(&["mtp."]))
        };
        self.build = Build {
            dense: format("layers.0.attn.wq_a.weight", declared.dense),
            experts: format("layers.0.ffn.experts.0.w1.weight", declared.experts),
            // Stages of DSpark of which the config says nothing cannot be told from damage: they are set aside.
            draft: draft.filter(|draft| *draft != Draft::Dspark || self.dspark.is_some()),
            image_routing: there("layers.0.ffn.gate.bias_vl"),
            vision: self.vision.is_some() && any(&["vision.", "aligner.", "image_"]),
        };
        if let Some(dspark) = &mut self.dspark {
            let stage =
                |(name, _): &HeldTensor<'_>| name.strip_prefix("mtp.")?.split('.').next()?.parse::<usize>().ok();
            let last = held.iter().filter_map(stage).filter(|stage| *stage < MAX_STAGES).max();
            dspark.stages = last.map_or(dspark.stages, |last| last + 1);
        }
    }
}
