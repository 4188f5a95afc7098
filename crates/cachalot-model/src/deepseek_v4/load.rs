//! From a checkpoint to a model.

use cachalot_checkpoint::Checkpoint;
use cachalot_checkpoint::deepseek_v4::Config;
use cachalot_checkpoint::family::Weights;
use cachalot_kernels::Treatment;

use super::weights::{Layer, Router};
use super::{Codecs, INPUT_BLOCK, Model, layout};
use crate::load::{LoadError, Parts, check_layout, within};
use crate::shared::hyper_connections::MAX_STREAMS;
use crate::shared::stack::Stack;
use crate::shared::trunk::Trunk;
use crate::shared::weights::Reader;

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
        let codecs = Codecs::new(parts.cache, config);
        let layout = layout(config, &codecs);
        within("hc_mult", config.hc_mult, MAX_STREAMS)?;
        check_layout(&layout)?;
        let (mut layers, mut routers, mut caches) = (Stack::new(parts.layers.clone()), Vec::new(), 0);
        for layer in 0..config.num_hidden_layers {
            let streamed = layers.streamed(layer);
            let mut reader = Reader { checkpoint, prefix: format!("layers.{layer}."), streamed, done: progress };
            let read = Layer::read(&mut reader, config, layer, caches)?;
            routers.push(Router::read(&mut reader, config, layer)?);
            caches += usize::from(read.compressed.is_some());
            layers.push(read)?;
        }
        let mut reader = Reader { checkpoint, prefix: String::new(), streamed: &[], done: progress };
        let mut trunk = Trunk::read(&mut reader, &config.trunk, &parts, codecs.key, INPUT_BLOCK, 0)?;
        if [config.build.dense, config.build.experts] == [Weights::Plain; 2] {
            // Where no weight is quantised, the vendor's kernels round no input either.
            (trunk.dense, trunk.routed) = (Treatment::Float32, Treatment::Float32);
        }
        Ok(Self {
            trunk,
            head_site: reader.site("hc_head")?,
            layout,
            codecs,
            layers,
            routers,
            experts: parts.experts,
            config: config.clone(),
        })
    }
}
