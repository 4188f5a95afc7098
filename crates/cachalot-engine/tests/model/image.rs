//! The image prompt with the reference's own image rows: both router biases, and Engram around an image span.

use cachalot_checkpoint::Checkpoint;
use cachalot_model::{Arithmetic, LogitsOf, Segment, Trace, Workspace};
use cachalot_storage::Directory;

use crate::fixture::{Fixture, distance};

#[test]
fn image_spans_use_their_own_bias_and_block_the_ngrams() {
    let fixture = Fixture::open("v41-tiny");
    let (engine, tensors) = (fixture.engine(Arithmetic::Exact, 2), fixture.tensors());
    let checkpoint = Checkpoint::open(std::sync::Arc::new(Directory::new(&fixture.directory))).unwrap();
    let config = checkpoint.architecture().deepseek_v41().unwrap();
    let (ids, aligned) = (tensors.ids("image"), tensors.f32("image.f32.aligner_out"));
    let special = ["image_start", "image_newline", "image_end"].map(|name| checkpoint.vector(name).unwrap());
    let mut rows = aligned.chunks(config.hidden_size);
    let embeddings: Vec<f32> = tensors
        .i32("image.token_types")
        .into_iter()
        .flat_map(|kind| match kind {
            0 => special[0].clone(),
            1 => rows.next().unwrap().to_vec(),
            2 => special[1].clone(),
            3 => special[2].clone(),
            _ => vec![f32::NAN; config.hidden_size],
        })
        .collect();

    let expected = tensors.f32("image.f32.logits");
    for chunk in [ids.len(), 1, 5] {
        let (mut sequence, mut work, mut trace) = (engine.model().sequence(), Workspace::new(), Trace::new(false));
        let mut logits = Vec::new();
        for (tokens, embeddings) in ids.chunks(chunk).zip(embeddings.chunks(chunk * config.hidden_size)) {
            let mut segments =
                [Segment { sequence: &mut sequence, tokens, embeddings: Some(embeddings), logits: LogitsOf::All }];
            logits.extend_from_slice(engine.model().advance(&mut work, &mut segments, Some(&mut trace)).unwrap());
        }
        let measured = distance(&logits, &expected, config.vocab_size);
        let limit = fixture.limit("image", "float32", "logits", "max_abs").unwrap();
        assert!(measured.max_abs <= limit, "{measured:?}, chunks of {chunk}");
        let engram = tensors.i32("image.f32.engram.rows");
        let columns = trace.engram_rows[0].len() / ids.len();
        for (token, &id) in ids.iter().enumerate() {
            // Rows of image positions are hashed but gated off.
            if Some(id) == config.image_token_id {
                continue;
            }
            for (layer, rows) in trace.engram_rows.iter().enumerate() {
                let theirs = &engram[(token * trace.engram_rows.len() + layer) * columns..][..columns];
                let ours = &rows[token * columns..(token + 1) * columns];
                assert!(ours.iter().zip(theirs).all(|(a, b)| *a == i64::from(*b)), "token {token}, layer {layer}");
            }
        }
    }
    let mut sequence = engine.model().sequence();
    let mut segments = [Segment { sequence: &mut sequence, tokens: &ids, embeddings: None, logits: LogitsOf::Last }];
    let error = engine.model().advance(&mut Workspace::new(), &mut segments, None).unwrap_err();
    assert!(error.to_string().contains("stands for an image"), "{error}");
}
