//! Layers that are not kept: read anew in every step, in order, ahead of whoever computes.
//!
//! Owns [`LAYER_BUFFERS`] buffers, each with room for any of these layers, allocated once. While one layer computes, the
//! next is read into the other buffer, and from its last one a step goes on to the first one of the next step. Where there
//! are no more layers than buffers, each is read once. One lock guards the bookkeeping; it is never held while something
//! is read or packed.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cachalot_checkpoint::CheckpointError;
use cachalot_kernels::Matrix;
use cachalot_storage::{Priority, Read, Reader, Sink, StorageError};

use crate::delivery::Interrupt;
use crate::layers::{LAYER_BUFFERS, LayerLayout, LayerSource, Matrices};
use crate::pieces::{Form, Piece, pack};
use crate::{LayerError, LayerStats};

/// How long a waiting caller sleeps before it looks whether it was interrupted.
const PATIENCE: Duration = Duration::from_millis(20);

/// The layers that a checkpoint streams.
pub struct StreamedLayers {
    shared: Arc<Shared>,
}

struct Shared {
    me: Weak<Self>,
    layout: LayerLayout,
    reader: Arc<Reader>,
    interrupt: Interrupt,
    /// Layers that are not kept, ascending, the reads of each, and where in a buffer its matrices are.
    layers: Vec<usize>,
    pieces: Vec<Vec<Piece>>,
    places: Vec<Vec<usize>>,
    buffers: Vec<Buffer>,
    state: Mutex<State>,
    change: Condvar,
}

struct State {
    slots: Vec<Slot>,
    /// Numbers, among the layers that are not kept, of those that will be asked for next.
    next: [usize; LAYER_BUFFERS],
    stats: LayerStats,
    closed: bool,
}

/// What layers are read into.
struct Buffer {
    /// Those of a layer that computes are with whoever computes.
    matrices: Vec<Mutex<Matrix>>,
    /// Per piece the generation that may still issue it, or 0. No lock: the reader asks while it holds its own.
    open: Vec<AtomicU32>,
    /// Pieces that are on their way; a buffer is not used again before they have arrived.
    in_flight: AtomicUsize,
}

/// What is in a buffer. Layers are numbered among those that are not kept.
struct Slot {
    content: Content,
    /// Changes with every load, so that reads left over from an earlier one are recognised; never 0.
    generation: u32,
    /// Pieces that have not arrived.
    missing: usize,
    /// Someone waits for it.
    demanded: bool,
    error: Option<LayerError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    Reading(usize),
    Ready(usize),
    /// With whoever computes.
    Taken(usize),
    /// It could not be read; why is in `error`.
    Failed(usize),
}

impl Content {
    fn layer(self) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::Reading(layer) | Self::Ready(layer) | Self::Taken(layer) | Self::Failed(layer) => Some(layer),
        }
    }
}

/// Which read of which buffer.
struct Token {
    generation: u32,
    slot: usize,
    piece: usize,
}

impl Token {
    fn pack(&self) -> u64 {
        u64::from(self.generation) << 32 | (self.slot as u64) << 24 | self.piece as u64
    }

    fn unpack(token: u64) -> Self {
        let low = token as u32;
        Self { generation: (token >> 32) as u32, slot: (low >> 24) as usize, piece: (low & 0xff_ffff) as usize }
    }
}

impl StreamedLayers {
    /// The layers `streamed`, ascending, of `layout`, read by `reader`; `interrupt` ends waiting.
    ///
    /// # Errors
    /// If the buffers cannot be allocated.
    pub fn new(
        layout: LayerLayout,
        streamed: &[usize],
        reader: Arc<Reader>,
        interrupt: Interrupt,
    ) -> Result<Self, CheckpointError> {
        let (forms, places) = layout.slots(streamed);
        let count = LAYER_BUFFERS.min(streamed.len());
        let pieces: Vec<Vec<Piece>> = streamed.iter().map(|layer| layout.pieces(*layer)).collect();
        let most = pieces.iter().map(Vec::len).max().unwrap_or(0);
        let mut buffers = Vec::with_capacity(count);
        for _ in 0..count {
            let matrix = |form: &Form| {
                let (tensor, bytes) = ("a layer that is read in every step".to_owned(), form.bytes() as u64);
                let matrix = Matrix::zeroed(form.format, form.rows, form.columns);
                matrix.map(Mutex::new).map_err(|_| CheckpointError::Memory { tensor, bytes })
            };
            buffers.push(Buffer {
                matrices: forms.iter().map(matrix).collect::<Result<_, _>>()?,
                open: (0..most).map(|_| AtomicU32::new(0)).collect(),
                in_flight: AtomicUsize::new(0),
            });
        }
        let slot = || Slot { content: Content::Nothing, generation: 1, missing: 0, demanded: false, error: None };
        let state = State {
            slots: (0..count).map(|_| slot()).collect(),
            next: [0, 1 % streamed.len().max(1)],
            stats: LayerStats { streamed: streamed.len(), ..LayerStats::default() },
            closed: false,
        };
        let shared = Arc::new_cyclic(|me| Shared {
            me: Weak::clone(me),
            layout,
            reader,
            interrupt,
            layers: streamed.to_vec(),
            pieces,
            places,
            buffers,
            state: Mutex::new(state),
            change: Condvar::new(),
        });
        shared.pump(&mut shared.lock());
        Ok(Self { shared })
    }

    /// What it has done so far.
    pub fn stats(&self) -> LayerStats {
        self.shared.lock().stats
    }
}

impl Drop for StreamedLayers {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.buffers.iter().for_each(Buffer::close);
    }
}

impl LayerSource for StreamedLayers {
    fn names(&self, layer: usize) -> &[String] {
        let streamed = self.shared.layers.binary_search(&layer).is_ok();
        if streamed { self.shared.layout.names(layer) } else { &[] }
    }

    fn take(&self, layer: usize, end: usize) -> Result<Matrices, LayerError> {
        let shared = &*self.shared;
        let number = shared.layers.binary_search(&layer).map_err(|_| LayerError::Kept { layer })?;
        let behind = shared.behind(number, end);
        let mut state = shared.lock();
        let start = Instant::now();
        let mut ahead = state.slots.iter().any(|slot| slot.content == Content::Reading(number));
        let outcome = loop {
            // Another step may have expected other ones meanwhile.
            state.next = [number, behind[0]];
            match shared.look(&mut state, number) {
                // What was read before anybody asked may go well now.
                Some(Err(_)) if std::mem::take(&mut ahead) => continue,
                Some(outcome) => break outcome,
                None => {}
            }
            if shared.interrupt.is_set() {
                state.slots.iter_mut().filter(|slot| slot.content.layer() == Some(number)).for_each(|slot| {
                    slot.demanded = false;
                });
                break Err(LayerError::Interrupted);
            }
            state = shared.change.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.stats.waited += start.elapsed();
        let slot = outcome?;
        (state.slots[slot].content, state.slots[slot].demanded) = (Content::Taken(number), false);
        state.next = behind;
        shared.pump(&mut state);
        drop(state);
        let matrices = &shared.buffers[slot].matrices;
        let matrix = |place: &usize| std::mem::replace(&mut *lock(&matrices[*place]), Matrix::empty());
        Ok(shared.places[number].iter().map(matrix).collect())
    }

    fn give_back(&self, layer: usize, matrices: Matrices) {
        let shared = &*self.shared;
        let Ok(number) = shared.layers.binary_search(&layer) else { return };
        let taken = |slot: &Slot| slot.content == Content::Taken(number);
        let Some(slot) = shared.lock().slots.iter().position(taken) else { return };
        for (place, matrix) in shared.places[number].iter().zip(matrices) {
            *lock(&shared.buffers[slot].matrices[*place]) = matrix;
        }
        let mut state = shared.lock();
        state.slots[slot].content = Content::Ready(number);
        shared.pump(&mut state);
        drop(state);
        shared.change.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The layers asked for after layer `number`, where a step ends before layer `end`.
    fn behind(&self, number: usize, end: usize) -> [usize; LAYER_BUFFERS] {
        let count = self.layers.partition_point(|layer| *layer < end).max(1);
        std::array::from_fn(|ahead| (number + 1 + ahead) % count.max(number + 1))
    }

    /// The buffer that holds layer `number`, or why it cannot; if neither is known, sees to it that it will be.
    fn look(&self, state: &mut State, number: usize) -> Option<Result<usize, LayerError>> {
        if let Some(at) = state.slots.iter().position(|slot| slot.content.layer() == Some(number)) {
            let slot = &mut state.slots[at];
            match slot.content {
                Content::Ready(_) => return Some(Ok(at)),
                Content::Failed(_) => {
                    slot.content = Content::Nothing;
                    let error = slot.error.take();
                    // What failed before anybody waited may go well now.
                    if let Some(error) = error.filter(|_| std::mem::take(&mut slot.demanded)) {
                        return Some(Err(error));
                    }
                }
                Content::Reading(_) => {
                    if !std::mem::replace(&mut slot.demanded, true) {
                        self.submit(slot, at, number, Priority::Demand);
                    }
                    return None;
                }
                Content::Taken(_) | Content::Nothing => return None,
            }
        }
        let next = state.next;
        if let Some(room) = self.room(state, &next) {
            self.start(&mut state.slots[room], room, number, Priority::Demand);
        }
        None
    }

    /// A buffer that can be read into; what is in one, is none of the layers `kept` and nobody waits for, is given up.
    fn room(&self, state: &mut State, kept: &[usize]) -> Option<usize> {
        for (slot, buffer) in state.slots.iter_mut().zip(&self.buffers) {
            let wanted = slot.demanded || slot.content.layer().is_some_and(|layer| kept.contains(&layer));
            if !wanted && !matches!(slot.content, Content::Taken(_)) {
                buffer.close();
                (slot.content, slot.error) = (Content::Nothing, None);
            }
        }
        let mut both = state.slots.iter().zip(&self.buffers);
        both.position(|(slot, buffer)| slot.content == Content::Nothing && buffer.in_flight.load(Ordering::SeqCst) == 0)
    }

    /// Reads what will be asked for next, as far as there is room.
    fn pump(&self, state: &mut State) {
        let next = state.next;
        for number in next {
            let there = state.slots.iter().any(|slot| slot.content.layer() == Some(number));
            if there || state.closed || number >= self.layers.len() {
                continue;
            }
            if let Some(room) = self.room(state, &next) {
                self.start(&mut state.slots[room], room, number, Priority::Prefetch);
            }
        }
    }

    /// Begins to read layer `number` into the buffer `at`.
    fn start(&self, slot: &mut Slot, at: usize, number: usize, priority: Priority) {
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        slot.missing = self.pieces[number].len();
        slot.demanded = priority == Priority::Demand;
        slot.error = None;
        slot.content = if slot.missing == 0 { Content::Ready(number) } else { Content::Reading(number) };
        for open in &self.buffers[at].open[..slot.missing] {
            open.store(slot.generation, Ordering::SeqCst);
        }
        self.submit(slot, at, number, priority);
    }

    /// Queues the pieces of a load that have not been issued.
    fn submit(&self, slot: &Slot, at: usize, number: usize, priority: Priority) {
        let Some(me) = self.me.upgrade() else { return };
        let sink: Arc<dyn Sink> = me;
        for (piece, read) in self.pieces[number].iter().enumerate() {
            if self.buffers[at].open[piece].load(Ordering::SeqCst) == slot.generation {
                let token = Token { generation: slot.generation, slot: at, piece }.pack();
                let file = Arc::clone(&self.layout.files[read.file as usize]);
                self.reader.submit(Read { file, offset: read.offset, length: read.bytes, token }, priority, &sink);
            }
        }
    }

    /// Packs what a piece of layer `number` holds into the buffer `slot`.
    fn take_over(
        &self,
        slot: usize,
        number: usize,
        piece: &Piece,
        bytes: Result<&[u8], StorageError>,
    ) -> Result<(), LayerError> {
        let (layer, checkpoint) = (self.layers[number], &self.layout.checkpoint);
        let tensor = |tensor: usize| {
            let stored = checkpoint.stored_matrix(&self.layout.names(layer)[tensor / 2])?;
            Ok(if tensor % 2 == 1 { stored.scales.unwrap_or(stored.weight) } else { stored.weight })
        };
        let bytes = bytes.map_err(|source| {
            let found = piece.parts.iter().filter_map(|part| tensor(part.tensor).ok());
            let names: Vec<String> = found.map(|tensor| tensor.name.to_string()).collect();
            LayerError::Disk { layer, tensors: names.join(", "), source: Box::new(source) }
        })?;
        for part in &piece.parts {
            let matrix = &mut *lock(&self.buffers[slot].matrices[self.places[number][part.matrix()]]);
            let form = self.layout.form(layer, part.matrix());
            let packed = pack(checkpoint, form, part, bytes, matrix, || tensor(part.tensor));
            packed.map_err(|source| LayerError::Read { layer, source: Box::new(source) })?;
        }
        Ok(())
    }
}

impl Buffer {
    /// Nothing that has not been issued will be.
    fn close(&self) {
        self.open.iter().for_each(|open| open.store(0, Ordering::SeqCst));
    }
}

impl Sink for Shared {
    fn claim(&self, token: u64) -> bool {
        let Token { generation, slot, piece } = Token::unpack(token);
        let buffer = &self.buffers[slot];
        // Counted first: whoever closes a buffer and finds nothing on its way may rely on it.
        buffer.in_flight.fetch_add(1, Ordering::SeqCst);
        let open = &buffer.open[piece];
        let claimed = open.compare_exchange(generation, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !claimed {
            buffer.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
        claimed
    }

    fn arrived(&self, token: u64, bytes: Result<&[u8], StorageError>) {
        let Token { generation, slot: at, piece } = Token::unpack(token);
        let reading = |slot: &Slot| match slot.content {
            Content::Reading(number) if slot.generation == generation => Some(number),
            _ => None,
        };
        let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let number = reading(&self.lock().slots[at]);
        let outcome = number.map(|number| self.take_over(at, number, &self.pieces[number][piece], bytes));
        let mut state = self.lock();
        state.stats.bytes += length;
        self.buffers[at].in_flight.fetch_sub(1, Ordering::SeqCst);
        let slot = &mut state.slots[at];
        if let (Some(number), Some(outcome)) = (reading(slot), outcome) {
            slot.missing -= 1;
            match outcome {
                Ok(()) if slot.missing == 0 => slot.content = Content::Ready(number),
                Ok(()) => {}
                Err(error) => {
                    // The other pieces are of no use.
                    self.buffers[at].close();
                    (slot.content, slot.error) = (Content::Failed(number), Some(error));
                }
            }
        }
        self.pump(&mut state);
        drop(state);
        self.change.notify_all();
    }
}
