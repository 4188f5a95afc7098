//! A loaded model with its tokenizer.

use std::sync::Arc;

use cachalot_checkpoint::Checkpoint;
use cachalot_checkpoint::deepseek_v41::Config;
use cachalot_experts::{LazyExperts, Rows};
use cachalot_kernels::Compute;
use cachalot_model::Arithmetic;
use cachalot_model::deepseek_v41::{Model, Parts};
use cachalot_runtime::Pool;
use cachalot_storage::Files;
use cachalot_text::{Family, Tokenizer, TokenizerProfile};

/// A model that can be talked to.
pub struct Engine {
    model: Model,
    tokenizer: Tokenizer,
    context: usize,
}

impl Engine {
    /// Loads.
    pub fn open(
        files: Arc<dyn Files>,
        arithmetic: Arithmetic,
        threads: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let checkpoint = Arc::new(Checkpoint::open(Arc::clone(&files))?);
        let config: &Config = checkpoint.architecture().deepseek_v41().unwrap();
        let profile = TokenizerProfile {
            family: Family::V41,
            vocab_size: config.vocab_size,
            image_token_id: config.image_token_id,
            noise_token_id: None,
        };
        let tokenizer = Tokenizer::from_json(&files.read_all("tokenizer.json", 64 << 20)?, &profile)?;
        let classes = match &config.engram {
            Some(engram) => {
                cachalot_text::engram::checked_token_classes(&tokenizer, engram.compressed_vocab_size as usize)?.classes
            }
            None => Vec::new(),
        };
        let parts = Parts {
            classes,
            experts: Arc::new(LazyExperts(Arc::clone(&checkpoint))),
            rows: Arc::new(Rows::new(
                &checkpoint,
                &config.engram.as_ref().map(|e| e.layer_ids.clone()).unwrap_or_default(),
            )),
            compute: Compute::new(Arc::new(Pool::new(threads))),
            arithmetic,
        };
        let model = Model::load(&checkpoint, config, parts, &mut |_| ())?;
        let context = config.max_position_embeddings;
        Ok(Self { model, tokenizer, context })
    }
    /// Model.
    pub fn model(&self) -> &Model {
        &self.model
    }
    /// Tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    /// Context.
    pub fn context(&self) -> usize {
        self.context
    }
}
