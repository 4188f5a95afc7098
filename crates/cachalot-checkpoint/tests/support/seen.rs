//! What the kernels make of a matrix.

use cachalot_kernels::{Activations, Compute, Matrix, Treatment, matmul_one};
use cachalot_runtime::Pool;
use std::sync::Arc;

/// The values that the kernels see: products with every unit vector.
pub fn seen(matrix: &Matrix, columns: usize) -> Vec<f32> {
    let compute = Compute::new(Arc::new(Pool::new(1)));
    let unit: Vec<f32> = (0..columns * columns).map(|place| f32::from(u8::from(place % (columns + 1) == 0))).collect();
    let mut input = Activations::new();
    input.set(&compute, &unit, columns, Treatment::Float32);
    let rows = matrix.rows();
    let mut output = vec![0.0; columns * rows];
    matmul_one(&compute, matrix, &input, &mut output);
    (0..rows * columns).map(|place| output[place % columns * rows + place / columns]).collect()
}
