//! How sizes are written and read: `12.3 GB`, `128k`.

/// Bytes in people's units.
pub fn gigabytes(bytes: u64) -> String {
    let (value, unit) = match bytes {
        0..1_000_000 => (bytes as f64 / 1e3, "kB"),
        1_000_000..1_000_000_000 => (bytes as f64 / 1e6, "MB"),
        _ => (bytes as f64 / 1e9, "GB"),
    };
    format!("{value:.1} {unit}")
}

/// A number of tokens.
pub fn tokens(count: usize) -> String {
    if count >= 1024 && count.is_multiple_of(1024) {
        format!("{}k tokens", count / 1024)
    } else {
        format!("{count} tokens")
    }
}

/// Reads `12G`, `1.5GB`, `800M` (powers of ten), `12GiB` (of two) or a plain number of bytes.
///
/// # Errors
/// Says what is expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("'{unit}' is no unit of memory; write 12G, 800M or 12GiB")),
    };
    let value: f64 =
        number.parse().map_err(|_| format!("'{text}' is no amount of memory; write 12G, 800M or 12GiB"))?;
    let bytes = value * factor;
    if bytes < 1e18 { Ok(bytes as u64) } else { Err(format!("'{text}' is more memory than any machine has")) }
}

/// Reads `4096`, `128k` or `1M` (powers of two, as contexts are counted).
///
/// # Errors
/// Says what is expected.
pub fn parse_tokens(text: &str) -> Result<u32, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) = match lower.strip_suffix('k') {
        Some(number) => (number, 1024),
        None => lower.strip_suffix('m').map_or((&*lower, 1), |number| (number, 1024 * 1024)),
    };
    let value: u32 = number.parse().map_err(|_| format!("'{text}' is no number of tokens; write 4096, 128k or 1M"))?;
    match value.checked_mul(factor) {
        Some(tokens) if tokens >= 2 => Ok(tokens),
        Some(_) => Err("a context needs at least 2 tokens".to_owned()),
        None => Err(format!("'{text}' is more than any model's context")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written() {
        let read =
            [("12G", 12_000_000_000), ("1.5gb", 1_500_000_000), ("800M", 800_000_000), ("2GiB", 2 << 30), ("77", 77)];
        for (text, bytes) in read {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "12X", "1.2.3G", "-1G", "1e30T", "999999999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!([5, 18_800_640, 12_345_678_901].map(gigabytes), ["0.0 kB", "18.8 MB", "12.3 GB"]);
        for (text, tokens) in [("4096", 4096), ("128k", 131_072), ("1M", 1 << 20)] {
            assert_eq!(parse_tokens(text), Ok(tokens), "{text}");
        }
        for text in ["", "k", "1", "0k", "1.5k", "9999M", "12q"] {
            assert!(parse_tokens(text).is_err(), "{text}");
        }
        assert_eq!([tokens(131_072), tokens(100)], ["128k tokens", "100 tokens"]);
    }
}
