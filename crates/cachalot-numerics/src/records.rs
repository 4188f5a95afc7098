//! The cache quantisers as codecs of packed records (spec V4 sections 3.1 and 4.1, V4.1 section 3.3).
//!
//! A record holds its codes first, then its scales. Quantisers divide by the scale, they never multiply by a
//! reciprocal.

use crate::{bf16, e2m1, e4m3, e8m0};

/// Elements that share a scale in FP8 and MXFP4 records.
pub const GROUP: usize = 32;
/// Elements that share a scale in key records; a part that is shorter has one scale.
pub const KEY_GROUP: usize = 64;
/// Elements that share a scale in NVFP4 records.
pub const NVFP4_GROUP: usize = 16;

/// Bytes of an FP8 record of `dim` elements: E4M3 codes, one E8M0 scale per 32.
pub const fn fp8_bytes(dim: usize) -> usize {
    dim + dim / GROUP
}

/// Bytes of an MXFP4 record of `dim` elements: E2M1 codes, one E8M0 scale per 32.
pub const fn mxfp4_bytes(dim: usize) -> usize {
    dim / 2 + dim / GROUP
}

/// Bytes of an NVFP4 record of `dim` elements: E2M1 codes, one E4M3 scale per 16.
pub const fn nvfp4_bytes(dim: usize) -> usize {
    dim / 2 + dim / NVFP4_GROUP
}

/// Bytes of a key record of `dim` elements, the last `rotary` of them rotated: E4M3 codes of the others, the rotated
/// ones in BF16, one E8M0 scale per 64 codes, zeros up to a multiple of 8. 584 in the V4 releases.
pub const fn key_bytes(dim: usize, rotary: usize) -> usize {
    let plain = dim - rotary;
    (plain + 2 * rotary + plain.div_ceil(KEY_GROUP)).next_multiple_of(8)
}

/// Codes, rotated part and scales of a key record for `dim` elements.
pub fn key_parts(record: &[u8], dim: usize, rotary: usize) -> [&[u8]; 3] {
    let plain = dim - rotary;
    let (codes, rest) = record.split_at(plain);
    let (rotated, scales) = rest.split_at(2 * rotary);
    [codes, rotated, &scales[..plain.div_ceil(KEY_GROUP)]]
}

fn largest(group: &[f32], floor: f32) -> f32 {
    group.iter().fold(floor, |max, value| max.max(value.abs()))
}

/// The E8M0 scale of a group of FP8 values (`AQ8`): the amplitude is floored at 1e-4.
pub fn fp8_scale(group: &[f32]) -> u8 {
    e8m0::ceil_code(largest(group, 1e-4) * (1.0 / e4m3::MAX))
}

/// `FQ8`: packs `values` (a multiple of 32) into `record` of [`fp8_bytes`].
pub fn encode_fp8(values: &[f32], record: &mut [u8]) {
    let (codes, scales) = record.split_at_mut(values.len());
    for ((group, codes), scale) in values.chunks_exact(GROUP).zip(codes.chunks_exact_mut(GROUP)).zip(scales) {
        *scale = fp8_scale(group);
        let divisor = e8m0::decode(*scale);
        codes.iter_mut().zip(group).for_each(|(code, value)| *code = e4m3::encode(value / divisor));
    }
}

/// Unpacks a record of [`encode_fp8`].
pub fn decode_fp8(record: &[u8], values: &mut [f32]) {
    let (codes, scales) = record.split_at(values.len());
    for ((group, codes), &scale) in values.chunks_exact_mut(GROUP).zip(codes.chunks_exact(GROUP)).zip(scales) {
        let scale = e8m0::decode(scale);
        group.iter_mut().zip(codes).for_each(|(value, &code)| *value = e4m3::decode(code) * scale);
    }
}

/// `AQ8`: rounds `values` to what FP8 with the scale `scale` can hold.
pub fn round_fp8(values: &mut [f32], scale: u8) {
    let divisor = e8m0::decode(scale);
    values.iter_mut().for_each(|value| *value = e4m3::decode(e4m3::encode(*value / divisor)) * divisor);
}

/// Packs `values` into `record` of [`key_bytes`].
pub fn encode_key(values: &[f32], rotary: usize, record: &mut [u8]) {
    let (plain, rotated) = values.split_at(values.len() - rotary);
    let (codes, rest) = record.split_at_mut(plain.len());
    let (pairs, scales) = rest.split_at_mut(2 * rotary);
    scales.fill(0);
    for ((group, codes), scale) in plain.chunks(KEY_GROUP).zip(codes.chunks_mut(KEY_GROUP)).zip(scales) {
        *scale = fp8_scale(group);
        let divisor = e8m0::decode(*scale);
        codes.iter_mut().zip(group).for_each(|(code, value)| *code = e4m3::encode(value / divisor));
    }
    for (pair, &value) in pairs.as_chunks_mut().0.iter_mut().zip(rotated) {
        *pair = bf16::encode(value).to_le_bytes();
    }
}

/// Unpacks a record of [`encode_key`].
pub fn decode_key(record: &[u8], rotary: usize, values: &mut [f32]) {
    let [codes, pairs, scales] = key_parts(record, values.len(), rotary);
    let (plain, rotated) = values.split_at_mut(codes.len());
    for ((group, codes), &scale) in plain.chunks_mut(KEY_GROUP).zip(codes.chunks(KEY_GROUP)).zip(scales) {
        let scale = e8m0::decode(scale);
        group.iter_mut().zip(codes).for_each(|(value, &code)| *value = e4m3::decode(code) * scale);
    }
    for (value, pair) in rotated.iter_mut().zip(pairs.as_chunks().0) {
        *value = bf16::decode(u16::from_le_bytes(*pair));
    }
}

fn pack_pairs(group: &[f32], divisor: f32, codes: &mut [u8]) {
    for (pair, code) in group.chunks_exact(2).zip(codes) {
        *code = e2m1::encode(pair[0] / divisor) | e2m1::encode(pair[1] / divisor) << 4;
    }
}

fn unpack_pairs(codes: &[u8], scale: f32, group: &mut [f32]) {
    for (pair, &code) in group.chunks_exact_mut(2).zip(codes) {
        pair[0] = e2m1::decode(code) * scale;
        pair[1] = e2m1::decode(code >> 4) * scale;
    }
}

/// `FQ4_mx`: packs `values` (a multiple of 32) into `record` of [`mxfp4_bytes`].
pub fn encode_mxfp4(values: &[f32], record: &mut [u8]) {
    let (codes, scales) = record.split_at_mut(values.len() / 2);
    for ((group, codes), scale) in values.chunks_exact(GROUP).zip(codes.chunks_exact_mut(GROUP / 2)).zip(scales) {
        // The floor 6 * 2^-126 keeps the smallest scale normal.
        *scale = e8m0::ceil_code(largest(group, 6.0 * f32::MIN_POSITIVE) * (1.0 / 6.0)).max(1);
        pack_pairs(group, e8m0::decode(*scale), codes);
    }
}

/// Unpacks a record of [`encode_mxfp4`].
pub fn decode_mxfp4(record: &[u8], values: &mut [f32]) {
    let (codes, scales) = record.split_at(values.len() / 2);
    for ((group, codes), &scale) in values.chunks_exact_mut(GROUP).zip(codes.chunks_exact(GROUP / 2)).zip(scales) {
        unpack_pairs(codes, e8m0::decode(scale), group);
    }
}

/// `FQ4_nv`: packs `values` (a multiple of 16) into `record` of [`nvfp4_bytes`].
pub fn encode_nvfp4(values: &[f32], record: &mut [u8]) {
    let (codes, scales) = record.split_at_mut(values.len() / 2);
    let groups = values.chunks_exact(NVFP4_GROUP);
    for ((group, codes), scale) in groups.zip(codes.chunks_exact_mut(NVFP4_GROUP / 2)).zip(scales) {
        // The floor 6 * 2^-9 gives the smallest scale that E4M3 can hold.
        *scale = e4m3::encode(largest(group, 6.0 / 512.0) / 6.0);
        pack_pairs(group, e4m3::decode(*scale), codes);
    }
}

/// Unpacks a record of [`encode_nvfp4`].
pub fn decode_nvfp4(record: &[u8], values: &mut [f32]) {
    let (codes, scales) = record.split_at(values.len() / 2);
    let groups = values.chunks_exact_mut(NVFP4_GROUP);
    for ((group, codes), &scale) in groups.zip(codes.chunks_exact(NVFP4_GROUP / 2)).zip(scales) {
        unpack_pairs(codes, e4m3::decode(scale), group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fp8_group(largest: f32) -> u8 {
        let mut group = [0.0; GROUP];
        group[3] = -largest;
        fp8_scale(&group)
    }

    #[test]
    fn fp8_scales_step_just_above_448_times_a_power_of_two() {
        for exponent in -20..20 {
            let edge = 448.0 * libm::exp2f(exponent as f32);
            let edge_code = (127 + exponent) as u8;
            // 1e-4 is the floor: below it the scale stays.
            if edge > 1e-4 {
                assert_eq!(fp8_group(edge), edge_code, "at {edge}");
                assert_eq!(fp8_group(edge * 1.000_001), edge_code + 1, "above {edge}");
            }
        }
        assert_eq!(fp8_group(0.0), fp8_group(1e-4));
        assert_eq!(e8m0::decode(fp8_group(0.0)), libm::exp2f(-22.0));
    }

    #[test]
    fn records_of_the_spec() {
        let mut values = [0.0f32; 32];
        values[..8].copy_from_slice(&[6.0, -0.75, 0.25, -0.0, 1.25, 5.0, 3.5, 2.5]);
        let mut record = [0; 17];
        encode_mxfp4(&values, &mut record);
        assert_eq!(record[16], 127);
        assert_eq!(record[..4], [0xa7, 0x80, 0x62, 0x46]);
        let mut record = [0; 20];
        encode_nvfp4(&values, &mut record);
        assert_eq!(record[16], e4m3::encode(1.0));
        assert_eq!(record[17], 0x01, "the floor's scale is 2^-9");
        let mut back = [1.0; 32];
        decode_nvfp4(&record[..18], &mut back);
        assert_eq!(back[..8], [6.0, -1.0, 0.0, -0.0, 1.0, 4.0, 4.0, 2.0]);
        assert!(back[3].is_sign_negative());
    }

    /// 448 codes, 64 numbers of BF16, 7 scales and a byte that fills up; a part shorter than a group has one scale.
    #[test]
    fn key_records_of_the_spec() {
        assert_eq!((key_bytes(512, 64), mxfp4_bytes(128)), (584, 68));
        assert_eq!(key_bytes(64, 32), (32usize + 64 + 1).next_multiple_of(8));
        let mut values = vec![0.0; 512];
        (values[0], values[1], values[64], values[447]) = (448.0, -1.1, 1e-10, 3.0 * 2f32.powi(-10));
        (values[448], values[511]) = (1.0 + 1.0 / 256.0, -2.0);
        let mut record = vec![0xaa; 584];
        encode_key(&values, 64, &mut record);
        let [codes, pairs, scales] = key_parts(&record, 512, 64);
        assert_eq!((codes.len(), pairs.len(), scales.len(), record[583]), (448, 128, 7, 0));
        // Amplitude 448 needs no scale; one below 1e-4 counts as 1e-4; 3 * 2^-10 is 384 * 2^-17.
        assert_eq!((scales[0], scales[1], scales[6]), (127, 127 - 22, 127 - 17));
        assert_eq!((codes[0], codes[1], codes[64], codes[447]), (0x7e, e4m3::encode(-1.125), 0, e4m3::encode(384.0)));
        assert_eq!((pairs[..2].to_vec(), pairs[126..].to_vec()), (vec![0x80, 0x3f], vec![0x00, 0xc0]));
        let mut back = vec![1.0; 512];
        decode_key(&record, 64, &mut back);
        assert_eq!(
            (back[0], back[1], back[64], back[447], back[448], back[511]),
            (448.0, -1.125, 0.0, values[447], 1.0, -2.0)
        );
    }

    proptest! {
        #[test]
        fn quantised_values_are_fixed_points(values in prop::collection::vec(-1e4f32..1e4, 64)) {
            type Codec = (fn(&[f32], &mut [u8]), fn(&[u8], &mut [f32]), fn(usize) -> usize);
            let codecs: [Codec; 2] =
                [(encode_fp8, decode_fp8, fp8_bytes), (encode_mxfp4, decode_mxfp4, mxfp4_bytes)];
            for (encode, decode, bytes) in codecs {
                let (mut record, mut again) = (vec![0; bytes(64)], vec![0; bytes(64)]);
                let (mut once, mut twice) = (vec![0.0; 64], vec![0.0; 64]);
                encode(&values, &mut record);
                decode(&record, &mut once);
                encode(&once, &mut again);
                decode(&again, &mut twice);
                prop_assert_eq!(&once, &twice);
            }
            let mut rounded = values.clone();
            rounded.chunks_mut(GROUP).for_each(|group| round_fp8(group, fp8_scale(group)));
            let mut record = vec![0; fp8_bytes(64)];
            let mut decoded = vec![0.0; 64];
            encode_fp8(&values, &mut record);
            decode_fp8(&record, &mut decoded);
            prop_assert_eq!(rounded, decoded);
        }

        #[test]
        fn errors_stay_within_half_a_step(values in prop::collection::vec(-100f32..100.0, 32)) {
            let max = values.iter().fold(0f32, |max, value| max.max(value.abs()));
            let (mut record, mut back) = (vec![0; nvfp4_bytes(32)], vec![0.0; 32]);
            encode_nvfp4(&values, &mut record);
            decode_nvfp4(&record, &mut back);
            for (value, back) in values.iter().zip(&back) {
                // The largest step of E2M1 is a third of its maximum; the scale itself is rounded by at most 1/16.
                prop_assert!((value - back).abs() <= max * 0.24 + 0.01, "{} became {}", value, back);
            }
        }
    }
}
