//! What stored matrices stand for, decoded number by number.

use cachalot_checkpoint::{Checkpoint, Dtype, TensorInfo};

/// A tensor as stored.
pub fn bytes_of(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes as usize];
    checkpoint.read(tensor, 0, &mut bytes).expect("reads");
    bytes
}

/// E4M3 by its definition (spec section 2.2).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code >> 7 == 1 { -size } else { size }
}

fn e2m1(code: u8) -> f32 {
    let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 8 { -size } else { size }
}

fn e8m0(code: u8) -> f32 {
    2f32.powi(i32::from(code) - 127)
}

/// The values of a matrix `[rows, columns]`, decoded one by one from the stored bytes.
pub fn decoded(checkpoint: &Checkpoint, name: &str) -> (usize, usize, Vec<f32>) {
    let tensor = checkpoint.tensor(name).expect("there");
    let bytes = bytes_of(checkpoint, tensor);
    let [rows, stored] = [0, 1].map(|axis| tensor.shape[axis] as usize);
    let scales = name.strip_suffix(".weight").and_then(|stem| checkpoint.find(&format!("{stem}.scale")));
    let scales = scales.map(|scales| bytes_of(checkpoint, scales)).unwrap_or_default();
    let columns = if tensor.dtype == Dtype::I8 { 2 * stored } else { stored };
    let [block, _] = checkpoint.architecture().fp8_block();
    let value = |row: usize, column: usize| match tensor.dtype {
        Dtype::F8_E4M3 => {
            e4m3(bytes[row * stored + column]) * e8m0(scales[row / block * columns.div_ceil(block) + column / block])
        }
        Dtype::I8 => {
            let byte = bytes[row * stored + column / 2];
            let code = if column.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
            e2m1(code) * e8m0(scales[row * columns / 32 + column / 32])
        }
        Dtype::BF16 => {
            let at = 2 * (row * columns + column);
            f32::from_le_bytes([0, 0, bytes[at], bytes[at + 1]])
        }
        _ => f32::from_le_bytes(std::array::from_fn(|place| bytes[4 * (row * columns + column) + place])),
    };
    let values = (0..rows * columns).map(|place| value(place / columns, place % columns)).collect();
    (rows, columns, values)
}
