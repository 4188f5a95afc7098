//! Why an expert, a layer or a row cannot be had.

use cachalot_checkpoint::CheckpointError;
use cachalot_storage::StorageError;

/// Why an expert cannot be provided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExpertError {
    /// There is no such layer or expert.
    #[error("layer {layer} has no expert {expert}: there are {layers} layers with {experts} experts each")]
    NoExpert {
        /// The layer that was asked for.
        layer: usize,
        /// The expert that was asked for.
        expert: u32,
        /// Layers of the model.
        layers: usize,
        /// Experts of a layer.
        experts: usize,
    },
    /// The disk did not deliver.
    #[error("expert {expert} of layer {layer} ({tensors}): {source}")]
    Disk {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: u32,
        /// The tensors that the read was for.
        tensors: String,
        /// Why; names shard and offset.
        source: Box<StorageError>,
    },
    /// The caller no longer wants to wait.
    #[error("interrupted while waiting for the disk")]
    Interrupted,
    /// One of its tensors cannot be read.
    #[error("expert {expert} of layer {layer}: {source}")]
    Read {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: u32,
        /// Why; names shard, tensor and index.
        source: Box<CheckpointError>,
    },
}

/// Why the matrices of a layer that is not kept cannot be provided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer is kept, or there is none of this number.
    #[error("layer {layer} is not one of those that are read in every step")]
    Kept {
        /// The layer that was asked for.
        layer: usize,
    },
    /// The disk did not deliver.
    #[error("layer {layer} ({tensors}): {source}")]
    Disk {
        /// The layer.
        layer: usize,
        /// The tensors that the read was for.
        tensors: String,
        /// Why; names shard and offset.
        source: Box<StorageError>,
    },
    /// One of its tensors cannot be read.
    #[error("layer {layer}: {source}")]
    Read {
        /// The layer.
        layer: usize,
        /// Why; names shard, tensor and index.
        source: Box<CheckpointError>,
    },
    /// The caller no longer wants to wait.
    #[error("interrupted while waiting for the disk")]
    Interrupted,
}

/// Why a row cannot be provided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// There is no such table.
    #[error("there is no table {table}: there are {tables}")]
    NoTable {
        /// The table that was asked for.
        table: usize,
        /// Number of tables.
        tables: usize,
    },
    /// There is no such row.
    #[error("{tensor} has no row {row}: it has {rows}")]
    NoRow {
        /// The table's tensor.
        tensor: String,
        /// The row that was asked for.
        row: u64,
        /// Rows of the table.
        rows: u64,
    },
    /// The output is not as long as the rows.
    #[error("{tensor}: {rows} rows of {width} values do not fill an output of {length}")]
    Length {
        /// The table's tensor.
        tensor: String,
        /// Rows that were asked for.
        rows: usize,
        /// Values of a row.
        width: usize,
        /// Length of the output.
        length: usize,
    },
    /// The disk did not deliver.
    #[error("row {row} of {tensor}: {source}")]
    Disk {
        /// The tensor that the read was for.
        tensor: String,
        /// The row.
        row: u64,
        /// Why; names shard and offset.
        source: Box<StorageError>,
    },
    /// The caller no longer wants to wait.
    #[error("interrupted while waiting for the disk")]
    Interrupted,
    /// A row, or the description of its table, cannot be read.
    #[error("{0}")]
    Read(#[from] Box<CheckpointError>),
}

impl From<CheckpointError> for RowError {
    fn from(error: CheckpointError) -> Self {
        Self::Read(Box::new(error))
    }
}
