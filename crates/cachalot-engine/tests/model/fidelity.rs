//! Every fixture, within the limits that its own noise and rounding set.

use cachalot_engine::engine::CacheChoice;
use cachalot_engine::forward::{ForwardMode, ForwardReport};
use cachalot_model::Arithmetic;

use crate::fixture::{Fixture, NAMES, Tensors, distance};

/// Our logits at the positions that the fixture holds.
fn chosen(fixture: &Fixture, prompt: &str, logits: &[f32], vocabulary: usize) -> Vec<f32> {
    let positions = fixture.report["prompts"][prompt]["logit_positions"].as_array().unwrap();
    let rows = positions.iter().map(|position| position.as_u64().unwrap() as usize * vocabulary);
    rows.flat_map(|start| logits[start..start + vocabulary].iter().copied()).collect()
}

/// Share of the rows of `width` that hold the same ids, in any order; -1 is none.
fn rows_equal(ours: &[i32], theirs: &[i32], width: usize) -> (usize, usize) {
    let set = |row: &[i32]| {
        let mut ids: Vec<_> = row.iter().copied().filter(|&id| id >= 0).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ours.len(), theirs.len());
    let same = ours.chunks(width).zip(theirs.chunks(width)).filter(|(a, b)| set(a) == set(b)).count();
    (same, ours.len() / width)
}

fn check_sets(
    fixture: &Fixture,
    tensors: &Tensors,
    prompt: &str,
    recorded: &str,
    quantity: &str,
    ours: &[Vec<i32>],
    width: usize,
) {
    let Some(limit) = fixture.limit(prompt, "float32", quantity, "rows_equal") else { return };
    let (mut same, mut total) = (0, 0);
    let names = tensors.layers(prompt, recorded);
    assert_eq!(names.len(), ours.len(), "{prompt} {quantity}");
    for (name, ours) in names.iter().zip(ours) {
        let theirs = tensors.i32(name);
        // A short prompt has fewer entries to select than the model's limit.
        let their_width = theirs.len() / (ours.len() / width);
        let ours: Vec<i32> = ours.chunks(width).flat_map(|row| &row[..their_width]).copied().collect();
        let (layer_same, layer_total) = rows_equal(&ours, &theirs, their_width.max(1));
        same += layer_same;
        total += layer_total;
    }
    // A prompt of one token has nothing to select from.
    let share = if total == 0 { 1.0 } else { same as f64 / total as f64 };
    assert!(share >= limit, "{} {prompt} {quantity}: {share} of the rows are equal, not {limit}", fixture.name);
}

fn relative_error(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let error: f64 = ours.iter().zip(theirs).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (error / theirs.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

#[test]
fn exact_arithmetic_equals_the_float32_reference() {
    for name in NAMES {
        let fixture = Fixture::open(name);
        let (engine, tensors) = (fixture.engine(Arithmetic::Exact, 2), fixture.tensors());
        let config = engine.model().config();
        for prompt in fixture.prompts() {
            let ids = tensors.ids(prompt);
            let detailed = !tensors.layers(prompt, "streams_in").is_empty();
            let report =
                ForwardReport::run(engine.model(), &ids, ForwardMode::Chunk(64), detailed, &mut |_| ()).unwrap();
            let ours = chosen(&fixture, prompt, report.logits(), config.vocab_size);
            let measured = distance(&ours, &tensors.f32(&format!("{prompt}.f32.logits")), config.vocab_size);
            println!("{name} {prompt}: {measured:?}");
            let values =
                [("max_abs_p50", measured.max_abs_p50), ("max_abs", measured.max_abs), ("mean_kl", measured.mean_kl)];
            let mut limits = 0;
            for (measure, value) in values {
                let Some(limit) = fixture.limit(prompt, "float32", "logits", measure) else { continue };
                assert!(value <= limit, "{name} {prompt}: {measure} is {value}, above {limit}");
                limits += 1;
            }
            assert!(limits > 0, "{name} {prompt} has no limit");
            let trace = report.trace();
            check_sets(&fixture, &tensors, prompt, "experts", "experts", &trace.experts, config.num_experts_per_tok);
            check_sets(
                &fixture,
                &tensors,
                prompt,
                "topk",
                "index_selection",
                &trace.index_selection,
                config.index_topk,
            );
            let rows = format!("{prompt}.f32.engram.rows");
            if tensors.has(&rows) {
                check_engram_rows(&tensors.i32(&rows), &trace.engram_rows, ids.len());
            }
            if let (Some(streams), Some(limit)) =
                (&trace.streams, fixture.limit(prompt, "float32", "streams", "relative_l2"))
            {
                let mut names = tensors.layers(prompt, "streams_in");
                names.push(format!("{prompt}.f32.final.streams"));
                for (name, ours) in names.iter().zip(streams) {
                    let error = relative_error(ours, &tensors.f32(name));
                    assert!(error <= limit, "{name}: {error}, above {limit}");
                }
            }
        }
    }
}

/// The reference records `[tokens, layers, columns]`, we `[layers][tokens, columns]`: always exact.
fn check_engram_rows(theirs: &[i32], ours: &[Vec<i64>], tokens: usize) {
    let columns = ours[0].len() / tokens;
    for token in 0..tokens {
        for (layer, rows) in ours.iter().enumerate() {
            for column in 0..columns {
                let expected = theirs[(token * ours.len() + layer) * columns + column];
                assert_eq!(rows[token * columns + column], i64::from(expected), "token {token}, layer {layer}");
            }
        }
    }
}

#[test]
fn fast_arithmetic_loses_less_than_half_of_bf16() {
    for name in NAMES {
        let fixture = Fixture::open(name);
        let (engine, tensors) = (fixture.engine(Arithmetic::Fast, 2), fixture.tensors());
        let vocabulary = engine.model().config().vocab_size;
        let (mut ours_total, mut bf16_total) = (0.0, 0.0);
        for prompt in fixture.prompts() {
            let ids = tensors.ids(prompt);
            let report = ForwardReport::run(engine.model(), &ids, ForwardMode::Prefill, false, &mut |_| ()).unwrap();
            let expected = tensors.f32(&format!("{prompt}.f32.logits"));
            let measured = distance(&chosen(&fixture, prompt, report.logits(), vocabulary), &expected, vocabulary);
            println!("{name} {prompt}: {measured:?}");
            for (measure, value) in [("max_abs", measured.max_abs), ("mean_kl", measured.mean_kl)] {
                let limit = fixture.limit(prompt, "bfloat16", "logits", measure).unwrap();
                assert!(value <= limit, "{name} {prompt}: {measure} is {value}, above {limit}");
            }
            let positions = expected.len() / vocabulary;
            ours_total += measured.mean_kl * positions as f64;
            bf16_total += distance(&tensors.f32(&format!("{prompt}.bf16.logits")), &expected, vocabulary).mean_kl
                * positions as f64;
        }
        println!("{name}: fast {ours_total}, bf16 {bf16_total}");
        assert!(ours_total <= bf16_total / 2.0, "{name}: fast {ours_total}, bf16 {bf16_total}");
    }
}

#[test]
fn vendor_arithmetic_equals_the_reference_with_fp8_inputs() {
    let fixture = Fixture::open("v41-tiny");
    let (engine, tensors) = (fixture.engine(Arithmetic::Vendor, 1), fixture.tensors());
    let vocabulary = engine.model().config().vocab_size;
    let report =
        ForwardReport::run(engine.model(), &tensors.ids("p1"), ForwardMode::Prefill, false, &mut |_| ()).unwrap();
    let measured = distance(report.logits(), &tensors.f32("p1.fp8_activations.logits"), vocabulary);
    assert!(measured.max_abs <= 2e-5, "{measured:?}");
}

#[test]
fn greedy_continuation_is_the_references() {
    use cachalot_engine::sampling::SamplingParams;
    use cachalot_engine::session::{Event, Flow, Prefill, Request, Session};
    for name in ["v41-tiny", "v4-tiny"] {
        let fixture = Fixture::open(name);
        let greedy = &fixture.report["greedy"];
        let prompt = fixture.tensors().ids(greedy["prompt"].as_str().unwrap_or("p33"));
        let expected: Vec<u32> =
            greedy["f32"]["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let mut session = Session::new(fixture.engine(Arithmetic::Exact, 2));
        let request = Request {
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            max_tokens: expected.len(),
            prefill: Prefill::Exact,
            top_logprobs: None,
            prompt_logprobs: None,
            constraint: None,
        };
        let mut ours = Vec::new();
        let mut on_event = |event: Event| {
            if let Event::Token { id, .. } = event {
                ours.push(id);
            }
            Flow::Continue
        };
        session.generate(&prompt, &request, &mut on_event).unwrap();
        assert_eq!(ours, expected, "{name}");
    }
}

/// The vendor's packed cache against the float32 one, over all prompts: mean KL and the largest difference of a logit, at
/// most what is stated for the fixture, and not nothing.
#[test]
fn the_vendors_cache_of_v4_moves_logits_as_much_as_is_stated() {
    for (name, most_kl, most_difference) in [("v4-tiny", 1.2e-3, 0.95), ("v4-fp8-experts", 2e-5, 0.2)] {
        let fixture = Fixture::open(name);
        let logits = |cache: CacheChoice| {
            let engine = fixture.engine_with(Arithmetic::Exact, cache, 2);
            let run = |prompt: &str| {
                let ids = fixture.tensors().ids(prompt);
                ForwardReport::run(engine.model(), &ids, ForwardMode::Prefill, false, &mut |_| ()).unwrap()
            };
            fixture.prompts().into_iter().flat_map(|prompt| run(prompt).logits().to_vec()).collect::<Vec<_>>()
        };
        let (vendor, float32) = (logits(CacheChoice::Vendor), logits(CacheChoice::Float32));
        let vocabulary = fixture.engine(Arithmetic::Exact, 1).model().config().vocab_size;
        let measured = distance(&vendor, &float32, vocabulary);
        println!("{name}: {measured:?}");
        assert!(measured.mean_kl > 0.0 && measured.mean_kl <= most_kl, "{name}: {measured:?}");
        assert!(measured.max_abs <= most_difference, "{name}: {measured:?}");
    }
}
