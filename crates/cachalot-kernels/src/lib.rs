#![allow(missing_docs, dead_code)]
use std::{ops::Range, sync::Arc};
use cachalot_numerics::*;
use cachalot_runtime::Pool;
#[derive(Clone)] pub struct Compute { pool: Arc<Pool> }
impl Compute { pub fn new(pool: Arc<Pool>) -> Self { Self { pool } } pub fn pool(&self) -> &Pool { &self.pool } }
#[derive(Clone, Copy, PartialEq, Debug)] pub enum Format { Fp4, Fp8 { block: [usize; 2] }, Bf16, F32 }
pub struct Matrix { f: Format, rows: usize, cols: usize, v: Vec<f32>, s: Vec<f32> }
#[derive(Debug)] pub struct MatrixError; #[derive(Debug)] pub struct BadCode { pub index: usize }
impl Matrix {
    pub fn zeroed(f: Format, rows: usize, cols: usize) -> Result<Self, MatrixError> { Ok(Self { f, rows, cols, v: vec![0.0; rows * cols], s: vec![] }) }
    pub fn load_rows(&mut self, first: usize, raw: &[u8]) -> Result<(), BadCode> {
        let o = first * self.cols;
        match self.f {
            Format::Fp4 => for (i, b) in raw.iter().enumerate() { self.v[o + 2 * i] = e2m1::decode(b & 15); self.v[o + 2 * i + 1] = e2m1::decode(b >> 4); },
            Format::Fp8 { .. } => for (i, b) in raw.iter().enumerate() { self.v[o + i] = e4m3::decode(*b) },
            Format::Bf16 => for (i, b) in raw.chunks(2).enumerate() { self.v[o + i] = f32::from_bits((b[0] as u32) << 16 | (b[1] as u32) << 24) },
            Format::F32 => for (i, b) in raw.chunks(4).enumerate() { self.v[o + i] = f32::from_le_bytes(b.try_into().unwrap()) },
        } Ok(()) }
    pub fn load_scales(&mut self, raw: &[u8]) -> Result<(), BadCode> {
        let c = self.cols;
        for i in 0..self.v.len() { let (r, k) = (i / c, i % c);
            let s = match self.f { Format::Fp4 => raw[r * c.div_ceil(32) + k / 32], Format::Fp8 { block: [a, b] } => raw[(r / a) * c.div_ceil(b) + k / b], _ => 127 };
            self.v[i] *= e8m0(s); } Ok(()) }
    pub fn rows(&self) -> usize { self.rows } pub fn cols(&self) -> usize { self.cols } pub fn bytes(&self) -> usize { self.v.len() }
}
#[derive(Clone, Copy, PartialEq)] pub enum Treatment { Float32, Int16, Fp8 }
#[derive(Default)] pub struct Activations { v: Vec<f32>, cols: usize }
impl Activations {
    pub fn new() -> Self { Self::default() }
    pub fn set(&mut self, c: &Compute, x: &[f32], cols: usize, t: Treatment) { self.v.clear(); self.v.extend_from_slice(x); self.cols = cols;
        if t == Treatment::Fp8 { let mut r = vec![0u8; cols + cols / 32]; for x in self.v.chunks_mut(cols) { encode_fp8(c, x, &mut r); decode_fp8(c, &r, x); } } }
    pub fn gather(&mut self, f: &Activations, t: &[u32]) { self.cols = f.cols; self.v.clear(); for &t in t { self.v.extend_from_slice(&f.v[t as usize * f.cols..(t as usize + 1) * f.cols]) } }
    pub fn tokens(&self) -> usize { self.v.len() / self.cols } pub fn cols(&self) -> usize { self.cols }
}
pub struct Job<'a> { pub weight: &'a Matrix, pub rows: Range<usize>, pub input: &'a Activations, pub output: &'a mut [f32] }
pub fn matmul(c: &Compute, jobs: &mut [Job<'_>]) { for j in jobs { let n = j.rows.len(); let k = j.weight.cols;
    assert_eq!(k, j.input.cols); assert_eq!(j.output.len(), n * j.input.tokens());
    let (w, x, r0) = (&j.weight.v, &j.input.v, j.rows.start);
    c.pool().run_pieces(j.output, n, |t, out| for (r, o) in out.iter_mut().enumerate() { *o = dot(c, &w[(r0 + r) * k..(r0 + r + 1) * k], &x[t * k..(t + 1) * k]) }) } }
pub fn matmul_one(c: &Compute, w: &Matrix, x: &Activations, y: &mut [f32]) { matmul(c, &mut [Job { weight: w, rows: 0..w.rows, input: x, output: y }]) }
pub fn dot(_: &Compute, a: &[f32], b: &[f32]) -> f32 { let mut l = [0f32; 16]; for (a, b) in a.chunks(16).zip(b.chunks(16)) { for i in 0..a.len() { l[i] += a[i] * b[i] } } l.iter().sum() }
pub fn mean_square(c: &Compute, x: &[f32]) -> f32 { dot(c, x, x) / x.len() as f32 }
pub fn rms_norm(c: &Compute, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) { let r = 1.0 / (mean_square(c, x) + eps).sqrt(); for i in 0..x.len() { out[i] = w[i] * (x[i] * r) } }
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32], inv: bool) { for i in 0..cos.len() { let (a, b) = (x[2 * i], x[2 * i + 1]); let s = if inv { -sin[i] } else { sin[i] }; x[2 * i] = a * cos[i] - b * s; x[2 * i + 1] = a * s + b * cos[i]; } }
pub fn swiglu(_: &Compute, g: &[f32], u: &[f32], l: f32, w: f32, out: &mut [f32]) { for i in 0..g.len() { out[i] = math::silu(g[i].min(l)) * u[i].clamp(-l, l) * w } }
pub fn encode_fp8(_: &Compute, x: &[f32], r: &mut [u8]) { let n = x.len(); for (g, x) in x.chunks(32).enumerate() { let a = x.iter().fold(1e-4f32, |m, v| m.max(v.abs())); let s = scale_of(a, 1.0 / 448.0); r[n + g] = s; for i in 0..32 { r[g * 32 + i] = e4m3::encode((x[i] / e8m0(s)).clamp(-448.0, 448.0)) } } }
pub fn decode_fp8(_: &Compute, r: &[u8], x: &mut [f32]) { let n = x.len(); for i in 0..n { x[i] = e4m3::decode(r[i]) * e8m0(r[n + i / 32]) } }
pub fn encode_mxfp4(_: &Compute, x: &[f32], r: &mut [u8]) { let n = x.len() / 2; r.fill(0); for (g, x) in x.chunks(32).enumerate() { let a = x.iter().fold(6.0 * 2f32.powi(-126), |m, v| m.max(v.abs())); let s = scale_of(a, 1.0 / 6.0); r[n + g] = s; for i in 0..32 { r[g * 16 + i / 2] |= e2m1::encode((x[i] / e8m0(s)).clamp(-6.0, 6.0)) << (4 * (i & 1)) } } }
pub fn encode_nvfp4(_: &Compute, x: &[f32], r: &mut [u8]) { let n = x.len() / 2; r.fill(0); for (g, x) in x.chunks(16).enumerate() { let a = x.iter().fold(6.0 * 2f32.powi(-9), |m, v| m.max(v.abs())); let s = e4m3::encode(a / 6.0); r[n + g] = s; for i in 0..16 { r[g * 8 + i / 2] |= e2m1::encode((x[i] / e4m3::decode(s)).clamp(-6.0, 6.0)) << (4 * (i & 1)) } } }
pub fn decode_nvfp4(_: &Compute, r: &[u8], x: &mut [f32]) { let n = x.len(); for i in 0..n { x[i] = e2m1::decode(r[i / 2] >> (4 * (i & 1))) * e4m3::decode(r[n / 2 + i / 16]) } }
#[derive(Default)] pub struct AttentionScratch { p: Vec<f32> }
pub fn attend(c: &Compute, q: &[f32], keys: &[f32], scale: f32, sinks: &[f32], s: &mut AttentionScratch, out: &mut [f32]) {
    let d = q.len() / sinks.len(); let n = keys.len() / d;
    for h in 0..sinks.len() { let q = &q[h * d..(h + 1) * d]; s.p.clear(); s.p.extend((0..n).map(|t| dot(c, q, &keys[t * d..(t + 1) * d]) * scale));
        let m = s.p.iter().copied().fold(f32::MIN, f32::max); let mut sum = 0.0; for p in &mut s.p { *p = math::exp(*p - m); sum += *p; } sum += math::exp(sinks[h] - m);
        let o = &mut out[h * d..(h + 1) * d]; o.fill(0.0); for t in 0..n { for i in 0..d { o[i] += s.p[t] * keys[t * d + i] } } for v in o { *v /= sum } } }
pub fn index_scores(_: &Compute, q: &[u8], heads: usize, w: &[f32], keys: &[u8], dim: usize, out: &mut [f32]) {
    let r = dim / 2 + dim / 32; let dec = |b: &[u8], i: usize| e2m1::decode(b[i / 2] >> (4 * (i & 1))) * e8m0(b[dim / 2 + i / 32]);
    for (j, o) in out.iter_mut().enumerate() { let k = &keys[j * r..(j + 1) * r]; let mut s = 0.0; for h in 0..heads { let q = &q[h * r..(h + 1) * r]; let d: f32 = (0..dim).map(|i| dec(q, i) * dec(k, i)).sum(); s += d.max(0.0) * w[h]; } *o = s; } }
