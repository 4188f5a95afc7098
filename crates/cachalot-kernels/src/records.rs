//! Packing and unpacking of cache records (spec V4 section 4.1, V4.1 section 3.3), compiled for the instructions at hand.

use cachalot_numerics::{bf16, e8m0, records};

use crate::compute::Compute;
use crate::simd::{Kernel, Simd};

/// Packs a window key: `values` `[dim]` into a record of [`records::fp8_bytes`].
pub fn encode_fp8(_: &Compute, values: &[f32], record: &mut [u8]) {
    records::encode_fp8(values, record);
}

/// Packs a key or entry of V4: `values` `[dim]`, the last `rotary` of them rotated, into a record of
/// [`records::key_bytes`].
pub fn encode_key(_: &Compute, values: &[f32], rotary: usize, record: &mut [u8]) {
    records::encode_key(values, rotary, record);
}

/// Packs an index key or query: `values` `[dim]` into a record of [`records::mxfp4_bytes`].
pub fn encode_mxfp4(_: &Compute, values: &[f32], record: &mut [u8]) {
    records::encode_mxfp4(values, record);
}

/// Packs a compressed entry: `values` `[dim]` into a record of [`records::nvfp4_bytes`].
pub fn encode_nvfp4(_: &Compute, values: &[f32], record: &mut [u8]) {
    records::encode_nvfp4(values, record);
}

/// Unpacks a window key into `values` `[dim]`.
///
/// # Panics
/// If the record has another length than `values` needs.
pub fn decode_fp8(compute: &Compute, record: &[u8], values: &mut [f32]) {
    assert_eq!(record.len(), records::fp8_bytes(values.len()));
    compute.isa().run(DecodeFp8 { record, values });
}

/// Unpacks a key or entry of V4 into `values` `[dim]`.
///
/// # Panics
/// If the record has another length than `values` and the rotated part need.
pub fn decode_key(compute: &Compute, record: &[u8], rotary: usize, values: &mut [f32]) {
    assert!(rotary <= values.len() && record.len() == records::key_bytes(values.len(), rotary));
    compute.isa().run(DecodeKey { record, rotary, values });
}

/// Unpacks a compressed entry into `values` `[dim]`.
///
/// # Panics
/// If the record has another length than `values` needs.
pub fn decode_nvfp4(compute: &Compute, record: &[u8], values: &mut [f32]) {
    assert_eq!(record.len(), records::nvfp4_bytes(values.len()));
    compute.isa().run(DecodeNvfp4 { record, values });
}

/// An E4M3 code that is no NaN: shifted into a float32's place, where only the bias is missing.
#[inline(always)]
fn e4m3(code: u8) -> f32 {
    let code = u32::from(code);
    f32::from_bits((code & 0x80) << 24 | (code & 0x7f) << 20) * f32::from_bits((127 + 120) << 23)
}

/// An E2M1 code, likewise.
#[inline(always)]
fn e2m1(code: u8) -> f32 {
    let code = u32::from(code);
    f32::from_bits((code & 8) << 28 | (code & 7) << 22) * f32::from_bits((127 + 126) << 23)
}

struct DecodeFp8<'a> {
    record: &'a [u8],
    values: &'a mut [f32],
}

impl Kernel for DecodeFp8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (codes, scales) = self.record.split_at(self.values.len());
        let (groups, _) = self.values.as_chunks_mut::<{ records::GROUP }>();
        let (codes, _) = codes.as_chunks::<{ records::GROUP }>();
        for ((values, codes), &scale) in groups.iter_mut().zip(codes).zip(scales) {
            let scale = e8m0::decode(scale);
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = e4m3(code) * scale;
            }
        }
    }
}

struct DecodeKey<'a> {
    record: &'a [u8],
    rotary: usize,
    values: &'a mut [f32],
}

impl Kernel for DecodeKey<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let [codes, pairs, scales] = records::key_parts(self.record, self.values.len(), self.rotary);
        let (plain, rotated) = self.values.split_at_mut(codes.len());
        let groups = plain.chunks_mut(records::KEY_GROUP).zip(codes.chunks(records::KEY_GROUP));
        for ((values, codes), &scale) in groups.zip(scales) {
            let scale = e8m0::decode(scale);
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = e4m3(code) * scale;
            }
        }
        for (value, pair) in rotated.iter_mut().zip(pairs.as_chunks().0) {
            *value = bf16::decode(u16::from_le_bytes(*pair));
        }
    }
}

struct DecodeNvfp4<'a> {
    record: &'a [u8],
    values: &'a mut [f32],
}

impl Kernel for DecodeNvfp4<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (codes, scales) = self.record.split_at(self.values.len() / 2);
        let (groups, _) = self.values.as_chunks_mut::<{ records::NVFP4_GROUP }>();
        let (codes, _) = codes.as_chunks::<{ records::NVFP4_GROUP / 2 }>();
        for ((values, codes), &scale) in groups.iter_mut().zip(codes).zip(scales) {
            let scale = e4m3(scale);
            for (pair, &code) in values.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = [e2m1(code) * scale, e2m1(code >> 4) * scale];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Isa;
    use cachalot_runtime::Pool;
    use std::sync::Arc;

    #[test]
    fn every_code_and_scale_decodes_as_the_codecs_say() {
        for isa in Isa::available() {
            let compute = Compute::with_isa(Arc::new(Pool::new(1)), isa);
            for scale in (0..255u8).filter(|scale| scale & 0x7f != 0x7f) {
                let mut record: Vec<u8> =
                    (0..=255).map(|code: u8| if code & 0x7f == 0x7f { 0 } else { code }).collect();
                record.extend([scale; 8]);
                let (mut ours, mut theirs) = (vec![0.0; 256], vec![0.0; 256]);
                decode_fp8(&compute, &record, &mut ours);
                records::decode_fp8(&record, &mut theirs);
                assert!(ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()), "FP8, scale {scale}");
                let mut record: Vec<u8> =
                    (0..=255).map(|code: u8| if code & 0x7f == 0x7f { 0 } else { code }).collect();
                record.extend((0..32).map(|index| index ^ 0x3c));
                record.extend([scale; 8]);
                let (mut ours, mut theirs) = (vec![0.0; 272], vec![0.0; 272]);
                decode_key(&compute, &record, 16, &mut ours);
                records::decode_key(&record, 16, &mut theirs);
                assert!(ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()), "key, scale {scale}");
                let mut record: Vec<u8> = (0..=255).collect();
                record.extend([scale; 32]);
                let (mut ours, mut theirs) = (vec![0.0; 512], vec![0.0; 512]);
                decode_nvfp4(&compute, &record, &mut ours);
                records::decode_nvfp4(&record, &mut theirs);
                assert!(ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()), "NVFP4, scale {scale}");
            }
        }
    }
}
