//! Rows of the Engram tables and of the token embedding, read from the file by row (spec sections 2.2 and 3.10 e).
//!
//! Tables of 200 GB are never in memory. Rows that are asked for twice are read once; reads that turn out to wait for
//! a device go on in parallel.

use crate::{RowError, RowSource};
use cachalot_checkpoint::{Checkpoint, CheckpointError, Dtype, TensorInfo};
use cachalot_numerics::{e4m3, e8m0};
use cachalot_runtime::Pool;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Reads in flight.
const READERS: usize = 8;
/// How long rows are read one after the other before the readers are woken: about what waking them costs.
const PATIENCE: Duration = Duration::from_micros(100);
/// Columns that share one scale.
const BLOCK: usize = 32;

/// Rows straight from the checkpoint.
pub struct CheckpointRows {
    checkpoint: Arc<Checkpoint>,
    tables: Vec<Table>,
    readers: Pool,
    scratch: Mutex<Vec<Scratch>>,
}

struct Table {
    weight: TensorInfo,
    scale: Option<TensorInfo>,
    rows: u64,
    width: usize,
    /// Bytes of one row in the weight and in the scale tensor.
    bytes: [usize; 2],
}

/// Buffers of one fetch, kept for the next.
#[derive(Default)]
struct Scratch {
    /// Row and place in the output, ascending.
    order: Vec<(u64, u32)>,
    /// Where in `order` each distinct row begins.
    distinct: Vec<u32>,
    /// The distinct rows, as stored: codes, then scales.
    stored: Vec<u8>,
}

impl CheckpointRows {
    /// The tables of a checkpoint: those of Engram in the order of the config (V4.1), then the token embedding.
    ///
    /// # Errors
    /// If a table is missing, or not of the released form.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Result<Self, RowError> {
        let engram = checkpoint.architecture().deepseek_v41().and_then(|config| config.engram.clone());
        let engram = engram.iter().flat_map(|engram| &engram.layer_ids);
        let names = engram.map(|layer| format!("layers.{layer}.engram.embed")).chain(["embed".to_owned()]);
        let tables = names.map(|name| Table::open(&checkpoint, &name)).collect::<Result<_, _>>()?;
        Ok(Self { checkpoint, tables, readers: Pool::for_reading(READERS), scratch: Mutex::default() })
    }

    /// Number of tables.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Reads the distinct rows that `scratch` lists.
    fn read(&self, table: &Table, scratch: &mut Scratch) -> Result<(), CheckpointError> {
        let Scratch { order, distinct, stored } = scratch;
        let size = table.bytes[0] + table.bytes[1];
        stored.resize(distinct.len() * size, 0);
        let read =
            |job: usize, stored: &mut [u8]| table.read(&self.checkpoint, order[distinct[job] as usize].0, stored);
        let waits = self.checkpoint.waits(&table.weight);
        let start = Instant::now();
        let mut done = 0;
        for (job, stored) in stored.chunks_exact_mut(size).enumerate() {
            read(job, stored)?;
            done += 1;
            // How long it takes decides how the rest is read, never what is read.
            if waits && start.elapsed() > PATIENCE {
                break;
            }
        }
        let failed: Mutex<Option<(usize, CheckpointError)>> = Mutex::new(None);
        self.readers.run_pieces(&mut stored[done * size..], size, |job, stored| {
            if let Err(error) = read(done + job, stored) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                // The lowest row is reported, whichever failed first.
                if failed.as_ref().is_none_or(|(other, _)| job < *other) {
                    *failed = Some((job, error));
                }
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl RowSource for CheckpointRows {
    fn fetch(&self, table: usize, rows: &[u64], out: &mut [f32]) -> Result<(), RowError> {
        let tables = self.tables.len();
        let table = self.tables.get(table).ok_or(RowError::NoTable { table, tables })?;
        table.check(rows, out.len())?;
        let mut pool = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = pool.pop().unwrap_or_default();
        drop(pool);
        scratch.list(rows);
        let result = self.read(table, &mut scratch);
        if result.is_ok() {
            table.decode(&scratch, out);
        }
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        Ok(result?)
    }

    fn width(&self, table: usize) -> usize {
        self.tables.get(table).map_or(0, |table| table.width)
    }
}

impl Scratch {
    fn list(&mut self, rows: &[u64]) {
        self.order.clear();
        self.order.extend(rows.iter().zip(0..).map(|(row, place)| (*row, place)));
        self.order.sort_unstable();
        self.distinct.clear();
        let first = |at: usize| at == 0 || self.order[at - 1].0 != self.order[at].0;
        self.distinct.extend((0..self.order.len()).filter(|at| first(*at)).map(|at| at as u32));
    }

    /// Places in `order` of distinct row number `job`.
    fn places(&self, job: usize) -> Range<usize> {
        let end = self.distinct.get(job + 1).map_or(self.order.len(), |end| *end as usize);
        self.distinct[job] as usize..end
    }
}

impl Table {
    fn open(checkpoint: &Checkpoint, name: &str) -> Result<Self, CheckpointError> {
        let weight = checkpoint.tensor(&format!("{name}.weight"))?.clone();
        let (rows, bytes) = weight.rows()?;
        let mut table = Self {
            rows,
            width: (bytes / weight.dtype.bytes()) as usize,
            bytes: [bytes as usize, 0],
            weight,
            scale: None,
        };
        let form = |tensor: &TensorInfo| {
            let (dtype, shape) = (tensor.dtype, tensor.shape);
            CheckpointError::Form { tensor: tensor.name.to_string(), dtype, shape, form: "a table of rows" }
        };
        match table.weight.dtype {
            Dtype::BF16 | Dtype::F32 => {}
            Dtype::F8_E4M3 => {
                let scale = checkpoint.tensor(&format!("{name}.scale"))?.clone();
                let scales = table.width.div_ceil(BLOCK);
                if scale.dtype != Dtype::F8_E8M0 || scale.rows()? != (rows, scales as u64) {
                    return Err(form(&scale));
                }
                table.bytes[1] = scales;
                table.scale = Some(scale);
            }
            _ => return Err(form(&table.weight)),
        }
        Ok(table)
    }

    fn check(&self, rows: &[u64], length: usize) -> Result<(), RowError> {
        let tensor = || self.weight.name.to_string();
        if let Some(&row) = rows.iter().find(|row| **row >= self.rows) {
            return Err(RowError::NoRow { tensor: tensor(), row, rows: self.rows });
        }
        if rows.len().checked_mul(self.width) != Some(length) || u32::try_from(rows.len()).is_err() {
            return Err(RowError::Length { tensor: tensor(), rows: rows.len(), width: self.width, length });
        }
        Ok(())
    }

    /// One row as stored: codes, then scales; their codes are checked.
    fn read(&self, checkpoint: &Checkpoint, row: u64, stored: &mut [u8]) -> Result<(), CheckpointError> {
        let (codes, scales) = stored.split_at_mut(self.bytes[0]);
        checkpoint.read_rows(&self.weight, row..row + 1, codes)?;
        match &self.scale {
            Some(scale) => checkpoint.read_rows(scale, row..row + 1, scales),
            None => Ok(()),
        }
    }

    /// Writes the distinct rows of `scratch` to every place that asks for them.
    fn decode(&self, scratch: &Scratch, out: &mut [f32]) {
        let size = self.bytes[0] + self.bytes[1];
        for (job, stored) in scratch.stored.chunks_exact(size).enumerate() {
            let places = &scratch.order[scratch.places(job)];
            let Some(&(_, first)) = places.first() else { continue };
            let at = |place: u32| place as usize * self.width;
            self.decode_row(stored, &mut out[at(first)..][..self.width]);
            for (_, place) in &places[1..] {
                out.copy_within(at(first)..at(first) + self.width, at(*place));
            }
        }
    }

    fn decode_row(&self, stored: &[u8], out: &mut [f32]) {
        let (codes, scales) = stored.split_at(self.bytes[0]);
        match self.weight.dtype {
            Dtype::F8_E4M3 => {
                for ((out, codes), scale) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
                    let scale = e8m0::decode(*scale);
                    out.iter_mut().zip(codes).for_each(|(out, code)| *out = e4m3::decode(*code) * scale);
                }
            }
            Dtype::BF16 => {
                let (pairs, _) = codes.as_chunks();
                let value = |pair: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
                out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = value(pair));
            }
            _ => {
                let (words, _) = codes.as_chunks();
                out.iter_mut().zip(words).for_each(|(out, word)| *out = f32::from_le_bytes(*word));
            }
        }
    }
}
