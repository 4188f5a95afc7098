//! A loaded model with its tokenizer: everything that sessions share.
//!
//! Owns the order in which a checkpoint becomes a model, and the context limit. Refuses to generate: a
//! [`Session`](crate::session::Session) does. Spec sections 2 and 3.10 (a); protocol.md section 1.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cachalot_checkpoint::deepseek_v4::Draft;
use cachalot_checkpoint::{Abilities, Architecture, Checkpoint, CheckpointError, Inspection};
use cachalot_experts::{
    CheckpointRows, ExpertError, ExpertLayout, ExpertStats, Interrupt, LayerLayout, LayerStats, Policy, RowError,
    StreamOptions, StreamedExperts, StreamedLayers,
};
use cachalot_kernels::Compute;
use cachalot_model::{Ablation, Arithmetic, CachePrecision, LoadError, Model, Parts};
use cachalot_runtime::Pool;
use cachalot_storage::{Files, Method, Probe, Reader, StorageError};
use cachalot_text::conversation::EffortTexts;
use cachalot_text::tokenizer::MAX_FILE_BYTES;
use cachalot_text::{Family, Tokenizer, TokenizerError, TokenizerProfile};

use crate::constraint::Constraints;
use crate::disk::Disk;
use crate::hot::HotList;
use crate::identity;
use crate::planner::units::tokens;
use crate::planner::{Available, Forecast, Late, MemoryPlan, MemoryRequest, PlanError, Rates, sizes};
use crate::prefixes::PrefixStore;
use crate::pressure::PressureWatch;
use crate::stats::Stats;

/// The tokenizer's file.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Memory that other programs find free, in bytes; experts are given up when it becomes less.
pub const DEFAULT_MEMORY_FLOOR: u64 = 384 << 20;
/// Rows of Engram tables and of the embedding kept in memory, in bytes: those of a prefill step, and the frequent ones.
pub const ROW_CACHE_BYTES: usize = 64 << 20;

/// What a user decides about an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// How linear layers treat their inputs.
    pub arithmetic: Arithmetic,
    /// Threads that compute; all cores if absent.
    pub threads: Option<usize>,
    /// Memory, context, and routed experts kept.
    pub memory: MemoryRequest,
    /// How sequences keep keys and entries.
    pub cache: CacheChoice,
    /// Parts of the model that are left out.
    pub ablation: Ablation,
    /// How the disk is read; found out by reading if absent.
    pub method: Option<Method>,
    /// Which experts are displaced.
    pub policy: Policy,
    /// Whether guesses of the next layer's experts may be read.
    pub guess: bool,
    /// Ends a step that waits for the disk.
    pub interrupt: Interrupt,
    /// Directory in which it is remembered which experts were worth keeping; nothing is remembered if absent.
    pub cache_directory: Option<PathBuf>,
    /// When the machine has less memory than this left, experts are given up; 0 never looks.
    pub memory_floor: u64,
    /// States of prompts and answers kept on the disk; none if absent.
    pub keep: Option<KeepOptions>,
}

/// Where states are kept between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepOptions {
    /// Directory; made if need be.
    pub directory: PathBuf,
    /// Bytes at most, or so.
    pub bytes: u64,
}

/// How sequences keep keys and entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheChoice {
    /// Packed as the vendor's program rounds them.
    #[default]
    Vendor,
    /// Float32 (V4 only).
    Float32,
    /// As the public reference that float32 results are compared with: float32 for V4, and for V4.1 the vendor's.
    Reference,
}

impl CacheChoice {
    fn precision(self, architecture: &Architecture) -> CachePrecision {
        match (self, architecture) {
            (Self::Float32, _) | (Self::Reference, Architecture::DeepseekV4(_)) => CachePrecision::Float32,
            _ => CachePrecision::Vendor,
        }
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            arithmetic: Arithmetic::default(),
            threads: None,
            memory: MemoryRequest::default(),
            cache: CacheChoice::default(),
            ablation: Ablation::default(),
            method: None,
            policy: Policy::DEFAULT,
            guess: true,
            interrupt: Interrupt::new(),
            cache_directory: None,
            memory_floor: DEFAULT_MEMORY_FLOOR,
            keep: None,
        }
    }
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loading {
    /// Bytes of weights that have been read.
    pub done: u64,
    /// Bytes that will be.
    pub total: u64,
}

/// Why a checkpoint cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file of the checkpoint is missing, damaged or of a model that is not known.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The tokenizer is damaged, or belongs to another model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A table of rows is not of the released form.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// The system gives no thread or memory to read with.
    #[error("the disk cannot be read: {0}")]
    Reader(#[from] std::io::Error),
    /// The model's parts do not fit together.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model does not fit the memory there is.
    #[error(transparent)]
    Memory(#[from] PlanError),
    /// A context without room for a question and an answer.
    #[error("a context of {context} tokens has no room for a prompt and an answer; at least 2 are needed")]
    Context {
        /// What was asked for.
        context: usize,
    },
}

/// A model that can be talked to. Shared by its sessions.
pub struct Engine {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    constraints: Arc<Constraints>,
    experts: Arc<StreamedExperts>,
    rows: Arc<CheckpointRows>,
    /// Absent if all layers are kept.
    layers: Option<Arc<StreamedLayers>>,
    reader: Arc<Reader>,
    probe: Probe,
    notes: Vec<String>,
    interrupt: Interrupt,
    hot: Option<HotList>,
    store: Option<Arc<PrefixStore>>,
    _pressure: Option<PressureWatch>,
    checkpoint: Arc<Checkpoint>,
    inspection: Inspection,
    plan: MemoryPlan,
    threads: usize,
    isa: &'static str,
}

impl Engine {
    /// Loads the checkpoint in `files`; `progress` hears of the weights as they arrive.
    ///
    /// # Errors
    /// [`OpenError`] names the file, field, tensor or token that is wrong.
    pub fn open(
        files: Arc<dyn Files>,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Loading),
    ) -> Result<Self, OpenError> {
        if let Some(context) = options.memory.context.filter(|context| *context < 2) {
            return Err(OpenError::Context { context });
        }
        let checkpoint = Arc::new(Checkpoint::open(Arc::clone(&files))?);
        let architecture = checkpoint.architecture();
        let tokenizer = Arc::new(open_tokenizer(&*files, architecture)?);
        let classes = match architecture.deepseek_v41().and_then(|config| config.engram.as_ref()) {
            Some(engram) => {
                let expected = engram.compressed_vocab_size as usize;
                cachalot_text::engram::checked_token_classes(&tokenizer, expected)?.classes
            }
            None => Vec::new(),
        };
        let pool = options.threads.map_or_else(Pool::with_all_cores, |threads| Pool::new(threads.max(1)));
        let threads = pool.threads();
        let compute = Compute::new(Arc::new(pool));
        let isa = compute.isa().name();
        let config = architecture.trunk();
        let (layers, count) = (config.num_hidden_layers, config.n_routed_experts);
        let layout = ExpertLayout::new(Arc::clone(&checkpoint), layers, count)?;
        let layers = LayerLayout::new(Arc::clone(&checkpoint), layers)?;
        let inspection = Inspection::of(&checkpoint);
        let sizes = sizes(&checkpoint, &inspection, &layout, &layers)?;
        let plan = MemoryPlan::new(&sizes, &options.memory, Available::now())?;
        let Disk { reader, probe, mut notes } = Disk::open(&checkpoint, &layout, &layers, options.method)?;
        if options.memory.context.is_none() && plan.context < config.max_position_embeddings {
            notes.push(format!("memory leaves room for a context of {}", tokens(plan.context)));
        }
        notes.extend(plan.streaming());
        let stream = StreamOptions {
            budget_bytes: plan.experts,
            policy: options.policy,
            interrupt: options.interrupt.clone(),
            guess: options.guess,
        };
        let experts = Arc::new(StreamedExperts::new(layout, Arc::clone(&reader), stream)?);
        let interrupt = options.interrupt.clone();
        let streamed = |layers| {
            let (set, reader) = (&plan.streamed_layers, Arc::clone(&reader));
            StreamedLayers::new(layers, set, reader, interrupt.clone()).map(Arc::new)
        };
        let layers = Some(layers).filter(|_| !plan.streamed_layers.is_empty()).map(streamed).transpose()?;
        let rows = CheckpointRows::new(Arc::clone(&checkpoint), Arc::clone(&reader), interrupt, ROW_CACHE_BYTES)?;
        let rows = Arc::new(rows);
        let parts = Parts {
            experts: Arc::clone(&experts) as _,
            layers: layers.clone().map(|layers| layers as _),
            rows: Arc::clone(&rows) as _,
            compute,
            arithmetic: options.arithmetic,
            ablation: options.ablation,
            cache: options.cache.precision(architecture),
            classes,
        };
        let mut loading = Loading { done: 0, total: inspection.memory.resident_bytes - plan.streamed_bytes };
        progress(loading);
        let model = Model::load(&checkpoint, parts, &mut |bytes| {
            // A packed matrix may be a little larger than the released one.
            loading.done = (loading.done + bytes as u64).min(loading.total);
            progress(loading);
        })?;
        let hot = options.cache_directory.as_ref().map(|directory| HotList::new(directory, &checkpoint));
        if let Some(hot) = &hot {
            experts.warm(&hot.read());
        }
        // Without a thread there is no watch, and nothing else is lost.
        let pressure = PressureWatch::start(&experts, options.memory_floor).ok().flatten();
        let store = options.keep.as_ref().and_then(|keep| {
            let identity = state_identity(&checkpoint, options)
                .map_err(|error| notes.push(format!("no states are kept on the disk: {error}")))
                .ok()?;
            PrefixStore::open(&keep.directory, &identity, keep.bytes)
                .map_err(|error| notes.push(error.to_string()))
                .ok()
        });
        if let Some(store) = &store {
            notes.extend(store.notes());
        }
        Ok(Self {
            store: store.map(Arc::new),
            model,
            constraints: Arc::new(Constraints::new(Arc::clone(&tokenizer))),
            tokenizer,
            experts,
            rows,
            layers,
            reader,
            probe,
            notes,
            interrupt: options.interrupt.clone(),
            hot,
            _pressure: pressure,
            checkpoint: Arc::clone(&checkpoint),
            inspection,
            plan,
            threads,
            isa,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Constraints of outputs, compiled for this model.
    pub fn constraints(&self) -> &Arc<Constraints> {
        &self.constraints
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokenizer, for whoever needs it beyond a call.
    pub fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// Most tokens of a sequence: what was asked for, or what the model goes up to and memory has room for.
    pub fn context(&self) -> usize {
        self.plan.context
    }

    /// Tokens per prefill step.
    pub fn prefill_chunk(&self) -> usize {
        self.plan.chunk
    }

    /// Where the model's bytes are.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Bytes of a sequence's state behind `tokens` tokens.
    pub fn state_bytes(&self, tokens: usize) -> u64 {
        let architecture = self.checkpoint.architecture();
        architecture.fixed_cache_bytes() + architecture.entry_cache_bytes(tokens as u64)
    }

    /// Longest context that the model goes up to, in tokens.
    pub fn context_limit(&self) -> usize {
        self.model.config().max_position_embeddings
    }

    /// What the checkpoint can do besides text.
    pub fn abilities(&self) -> Abilities {
        self.checkpoint.abilities()
    }

    /// The figures of the checkpoint.
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// Bytes of weights and caches that a decoded token behind `tokens` others reads.
    pub fn bytes_per_token(&self, tokens: u64) -> u64 {
        self.inspection.token.bytes() + self.checkpoint.architecture().cache_read_bytes(tokens)
    }

    /// Whether all routed experts have room in memory.
    pub fn experts_fit(&self) -> bool {
        self.experts.stats().slots as u64 >= self.inspection.memory.experts
    }

    /// Reads every routed expert once, so that as many are in memory as the budget allows.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read_experts(&self) -> Result<(), ExpertError> {
        self.experts.read_all()
    }

    /// Which texts the model knows for its efforts (protocol.md 2.3), as far as the checkpoint shows: the first builds of
    /// V4 come with an MTP block, the later ones with DSpark. One of the first has DSpark too: only its user can tell.
    pub fn effort_texts(&self) -> EffortTexts {
        match self.checkpoint.architecture().deepseek_v4().and_then(|config| config.build.draft) {
            Some(Draft::Mtp { .. }) => EffortTexts::Preview,
            _ => EffortTexts::Release,
        }
    }

    /// Where the checkpoint is, for people.
    pub fn label(&self) -> &str {
        self.checkpoint.label()
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set that computes.
    pub fn instruction_set(&self) -> &'static str {
        self.isa
    }

    /// What is worth telling the user about this machine's disk: ways of reading that it does not have.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// States kept on the disk.
    pub fn prefix_store(&self) -> Option<Arc<PrefixStore>> {
        self.store.clone()
    }

    /// How the disk is read, and how fast it was when the model was opened.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// What has been taken from memory and from the disk since the model was opened.
    pub fn stats(&self) -> Stats {
        let layers = self.layers.as_ref().map_or_else(LayerStats::default, |layers| layers.stats());
        Stats { experts: self.experts.stats(), rows: self.rows.stats(), layers, disk: self.reader.activity() }
    }

    /// Bytes per second that the disk delivers, over `time`: records of the model's own experts, read as the model reads
    /// them, at places that `seed` chooses. `None` if nothing can be read.
    pub fn measure_disk(&self, time: Duration, seed: u64) -> Option<f64> {
        let (targets, method) = (self.experts.targets(), self.reader.method());
        cachalot_storage::measure(&targets, self.probe.read_bytes, method, time, seed).ok()
    }

    /// What the planner says of a machine with these rates if `hit_rate` of the experts asked for is in memory, and of a
    /// prompt of `tokens` tokens.
    pub fn forecast(&self, rates: &Rates, hit_rate: f64, tokens: usize) -> Forecast {
        let late = Late::of(self.checkpoint.architecture());
        Forecast::with(&self.inspection, &self.plan, rates, late, hit_rate, &[tokens])
    }

    /// Rows and columns of the weights that share a scale.
    pub fn fp8_block(&self) -> [usize; 2] {
        self.checkpoint.architecture().fp8_block()
    }

    /// Bytes that reads in flight and kept rows take at most.
    pub fn reading_bytes(&self) -> usize {
        self.reader.buffer_bytes() + self.rows.capacity_bytes()
    }

    /// Remembers which experts are worth keeping, for the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn remember(&self) -> std::io::Result<()> {
        match &self.hot {
            Some(hot) => hot.write(&self.experts.hottest()),
            None => Ok(()),
        }
    }

    /// Ends a step that waits for the disk, as if its caller had cancelled it.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The routed experts.
    pub fn experts(&self) -> &StreamedExperts {
        &self.experts
    }

    /// What became of the routed experts that were asked for.
    pub fn expert_stats(&self) -> ExpertStats {
        self.experts.stats()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({}, context {}, {} threads)", self.label(), self.context(), self.threads)
    }
}

/// What decides the bits of a state: the checkpoint, and how it is computed. The number changes when states do.
fn state_identity(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<String, CheckpointError> {
    const STATES: u32 = 1;
    let checkpoint = identity::of_weights(checkpoint)?;
    let EngineOptions { arithmetic, cache, ablation, .. } = options;
    let text = format!("{STATES} {checkpoint:032x} {arithmetic:?} {cache:?} {ablation:?}");
    Ok(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes())))
}

fn open_tokenizer(files: &dyn Files, architecture: &Architecture) -> Result<Tokenizer, OpenError> {
    let (family, image_token_id, dspark) = match architecture {
        Architecture::DeepseekV4(config) => (Family::V4, None, config.dspark.as_ref()),
        Architecture::DeepseekV41(config) => (Family::V41, config.image_token_id, config.dspark.as_ref()),
        other => return Err(LoadError::Architecture { model_type: other.model_type() }.into()),
    };
    let profile = TokenizerProfile {
        family,
        vocab_size: architecture.trunk().vocab_size,
        image_token_id,
        noise_token_id: dspark.map(|dspark| dspark.noise_token_id),
    };
    let json = files.read_all(TOKENIZER_FILE, MAX_FILE_BYTES as u64)?;
    Ok(Tokenizer::from_json(&json, &profile)?)
}
