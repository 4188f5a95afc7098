#![allow(missing_docs)]
pub mod math {
    pub fn exp(x: f32) -> f32 { (f64::from(x)).exp() as f32 }
    pub fn sigmoid(x: f32) -> f32 { (1.0 / (1.0 + (-f64::from(x)).exp())) as f32 }
    pub fn silu(x: f32) -> f32 { (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32 }
    pub fn softplus(x: f32) -> f32 { let x = f64::from(x); (if x > 30.0 { x } else { x.exp().ln_1p() }) as f32 }
}
pub mod e4m3 {
    pub fn decode(b: u8) -> f32 {
        let (s, e, m) = (b >> 7, (b >> 3) & 15, b & 7);
        let v = if e == 0 { m as f32 / 512.0 } else { (8 + m) as f32 * 2f32.powi(e as i32 - 10) };
        if s == 1 { -v } else { v }
    }
    pub fn encode(x: f32) -> u8 {
        let a = x.abs().min(448.0);
        let mut best = 0u8; let mut bd = f32::INFINITY;
        for c in 0..0x7f { let d = (decode(c) - a).abs(); if d < bd || (d == bd && c & 1 == 0) { bd = d; best = c; } }
        best | if x.is_sign_negative() { 0x80 } else { 0 }
    }
}
pub mod e2m1 {
    pub const T: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    pub fn decode(b: u8) -> f32 { let v = T[(b & 7) as usize]; if b & 8 != 0 { -v } else { v } }
    pub fn encode(x: f32) -> u8 {
        let a = x.abs();
        let c = if a <= 0.25 {0} else if a < 0.75 {1} else if a <= 1.25 {2} else if a < 1.75 {3} else if a <= 2.5 {4} else if a < 3.5 {5} else if a <= 5.0 {6} else {7};
        c | if x.is_sign_negative() { 8 } else { 0 }
    }
}
pub fn e8m0(b: u8) -> f32 { 2f64.powi(b as i32 - 127) as f32 }
pub fn scale_of(a: f32, r: f32) -> u8 {
    let p = a * r; let bits = p.to_bits(); let e = (bits >> 23) as u8;
    if bits & 0x7fffff != 0 { e + 1 } else { e }
}
