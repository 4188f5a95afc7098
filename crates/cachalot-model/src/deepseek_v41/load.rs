//! From a checkpoint to a model.

use cachalot_checkpoint::Checkpoint;
use cachalot_checkpoint::deepseek_v41::{Config, EngramTables, MODEL_TYPE};

use super::weights::{Layer, Router};
use super::{INPUT_BLOCK, Model, WINDOW, layout};
use crate::load::{LoadError, Parts, check_layout, within};
use crate::shared::hyper_connections::MAX_STREAMS;
use crate::shared::stack::Stack;
use crate::shared::trunk::Trunk;
use crate::shared::weights::Reader;
use crate::state::CachePrecision;

impl Model {
    /// Reads all weights that every token needs; `progress` hears of the bytes of each matrix as it arrives.
    ///
    /// # Errors
    /// If a tensor cannot be read or a part does not fit the config.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        parts: Parts,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, LoadError> {
        let (layout, tables) = (layout(config), config.engram.as_ref().map(EngramTables::new).transpose()?);
        check(config, &parts)?;
        check_layout(&layout)?;
        let (mut layers, mut routers) = (Stack::new(parts.layers.clone()), Vec::new());
        for layer in 0..config.num_hidden_layers {
            let streamed = layers.streamed(layer);
            let mut reader = Reader { checkpoint, prefix: format!("layers.{layer}."), streamed, done: progress };
            let read = Layer::read(&mut reader, config, layer)?;
            routers.push(Router::read(&mut reader)?);
            layers.push(read)?;
        }
        let mut reader = Reader { checkpoint, prefix: String::new(), streamed: &[], done: progress };
        let embedding = tables.as_ref().map_or(0, |tables| tables.tables().len());
        let mut trunk = Trunk::read(&mut reader, &config.trunk, &parts, WINDOW, INPUT_BLOCK, embedding)?;
        trunk.image_token = config.image_token_id;
        Ok(Self {
            trunk,
            layout,
            kv_sources: config.kv_sources().map(|(layer, _)| layer).collect(),
            layers,
            routers,
            experts: parts.experts,
            ablation: parts.ablation,
            pad_class: config.engram.as_ref().map_or(0, |engram| parts.classes[engram.pad_token_id as usize]),
            classes: parts.classes,
            engram_tables: tables,
            config: config.clone(),
        })
    }
}

fn check(config: &Config, parts: &Parts) -> Result<(), LoadError> {
    within("text_config.hc_mult", config.hc_mult, MAX_STREAMS)?;
    if parts.cache != CachePrecision::Vendor {
        return Err(LoadError::Cache { architecture: MODEL_TYPE });
    }
    if let Some(engram) = &config.engram {
        let classes = parts.classes.iter().max().map_or(0, |&class| class as usize + 1);
        let expected = engram.compressed_vocab_size as usize;
        if parts.classes.len() != config.vocab_size || classes != expected {
            let (tokens, vocabulary) = (parts.classes.len(), config.vocab_size);
            return Err(LoadError::TokenMap { tokens, classes, vocabulary, expected });
        }
    }
    Ok(())
}
