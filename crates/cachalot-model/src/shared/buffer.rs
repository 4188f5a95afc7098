//! Small helpers for reusable buffers.

/// Gives `buffer` the length `length` without giving capacity back; what it holds is undefined.
pub fn sized<T: Copy + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    buffer.resize(length, T::default());
    buffer
}

/// Keeps, of the `rows` equal rows of `buffer`, those at the indices `kept`, ascending.
pub fn keep_rows<T: Copy>(buffer: &mut Vec<T>, rows: usize, kept: &[usize]) {
    let width = buffer.len() / rows.max(1);
    for (place, &row) in kept.iter().enumerate() {
        buffer.copy_within(row * width..(row + 1) * width, place * width);
    }
    buffer.truncate(kept.len() * width);
}

/// Cuts a slice in consecutive pieces of the given lengths; a piece that does not fit is cut short.
pub fn split_pieces<T>(mut rest: &mut [T], lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = &mut [T]> {
    lengths.map(move |length| {
        let (piece, tail) = std::mem::take(&mut rest).split_at_mut_checked(length).unwrap_or_default();
        rest = tail;
        piece
    })
}

/// `sum of x * w * k` over 16 interleaved partial sums that are added pairwise at the end.
pub fn weighted_dot(x: &[f32], w: &[f32], k: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for ((x, w), k) in x.chunks(16).zip(w.chunks(16)).zip(k.chunks(16)) {
        for (lane, ((x, w), k)) in lanes.iter_mut().zip(x.iter().zip(w).zip(k)) {
            *lane += x * w * k;
        }
    }
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
