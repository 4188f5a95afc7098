use cachalot_text::*;
use std::io::Read;
use std::time::Instant;
fn main() {
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open("fixtures/protocol/tokenizer-v41.json.gz").unwrap())
        .read_to_end(&mut json)
        .unwrap();
    let t = Instant::now();
    let tok = Tokenizer::from_json(
        &json,
        &TokenizerProfile { family: Family::V41, vocab_size: 129280, image_token_id: None, noise_token_id: None },
    )
    .unwrap();
    println!("load {:?}", t.elapsed());
    let t = Instant::now();
    let c = engram::token_classes(&tok);
    println!("classes {} {:?}", c.count, t.elapsed());
    let text = std::fs::read_to_string("fixtures/protocol/encode.jsonl").unwrap();
    let t = Instant::now();
    let n = tok.encode_plain(&text).unwrap().len();
    println!("{} bytes -> {} ids {:?}", text.len(), n, t.elapsed());
    for (name, s) in [
        ("spaces", " ".repeat(12_000_000)),
        ("spaces x", format!("{}x", " ".repeat(12_000_000))),
        ("a", "a".repeat(12_000_000)),
        ("newl", "\n".repeat(12_000_000)),
        ("bang", "!".repeat(12_000_000)),
    ] {
        let t = Instant::now();
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tok.encode_plain(&s).map(|v| v.len())));
        println!("{name} {:?} {:?}", r.map_err(|_| ()), t.elapsed());
    }
}
