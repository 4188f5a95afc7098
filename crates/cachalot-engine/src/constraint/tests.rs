//! Times of masks with the released vocabulary; run with `--ignored --nocapture`.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cachalot_text::conversation::{ResponseFormat, ToolChoice, ToolDefinition};
use cachalot_text::{Family, Json, TokenizerProfile};

use super::*;
use crate::sampling::{Sampler, SamplingParams};

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../..", name].iter().collect()
}

fn released() -> Tokenizer {
    let packed = std::fs::read(path("fixtures/protocol/tokenizer-v41.json.gz")).expect("a fixture");
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut json).expect("it unpacks");
    let profile = TokenizerProfile {
        family: Family::V41,
        vocab_size: 129_280,
        image_token_id: Some(129_264),
        noise_token_id: Some(128_799),
    };
    Tokenizer::from_json(&json, &profile).expect("the released tokenizer loads")
}

fn lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path("fixtures/schemas").join(name)).expect("a fixture");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Times of some steps.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn report(mut self, name: &str) {
        self.0.sort_unstable();
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize];
        let sum: Duration = self.0.iter().sum();
        println!(
            "{name}: {} steps, mean {:?}, median {:?}, 99 % {:?}, most {:?}",
            self.0.len(),
            sum / self.0.len() as u32,
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

/// Tokens chosen at random among those allowed, at most `tokens` of them.
fn walk(tokenizer: &Tokenizer, constraint: &Constraint, seed: u64, tokens: usize, times: &mut Times) {
    let mut output = Constrained::new(constraint);
    let mut sampler = Sampler::new(SamplingParams { seed, ..SamplingParams::default() }, &[]).expect("parameters");
    let logits = vec![0.0; tokenizer.vocab_size()];
    for _ in 0..tokens {
        let begin = Instant::now();
        let allowed = output.allowed().expect("a step");
        let found = begin.elapsed();
        let Some(id) = sampler.sample_among(&logits, &allowed).expect("a token") else { return };
        if tokenizer.is_stop(id) {
            return;
        }
        let begin = Instant::now();
        output.accept(id, tokenizer).expect("a step");
        times.0.push(found + begin.elapsed());
    }
}

#[test]
#[ignore = "prints times, for a machine that is quiet: the command is in the README"]
fn times_with_the_released_vocabulary() {
    let tokenizer = released();
    let begin = Instant::now();
    let vocabulary = Vocabulary::new(&tokenizer, &limits()).expect("a vocabulary");
    println!("vocabulary: {:?}", begin.elapsed());
    let made = |name: &str, conversation: &Conversation, wish: Option<&Wish>| {
        let begin = Instant::now();
        let start = StartState::Answer { drop_newlines: true };
        let rules = OutputConstraint::new(&tokenizer, conversation, start, wish).expect("rules").expect("rules");
        let rules_time = begin.elapsed();
        let constraint = Constraint(Arc::new(compile(&vocabulary, rules).expect("a grammar")));
        let whole = begin.elapsed();
        Constrained::new(&constraint);
        println!("{name}: rules {rules_time:?}, compiled after {whole:?}, begun in {:?}", begin.elapsed() - whole);
        constraint
    };
    let tools: Vec<ToolDefinition> = lines("tools.jsonl")
        .iter()
        .map(|line| ToolDefinition {
            name: line["name"].as_str().expect("a name").to_owned(),
            description: None,
            parameters: Json::from(&line["parameters"]),
            strict: None,
            deferred: false,
            input: None,
        })
        .collect();
    let conversation = Conversation { tools, tool_choice: ToolChoice::Auto, ..Conversation::default() };
    let wish = Wish::ToolCalls { required: true, parallel: true };
    let constraint = made("all tools", &conversation, Some(&wish));
    let mut times = Times::default();
    (0..12).for_each(|seed| walk(&tokenizer, &constraint, seed, 300, &mut times));
    times.report("calls");
    let mut times = Times::default();
    for line in lines("schemas.jsonl") {
        let response_format = ResponseFormat::JsonSchema(Json::from(&line["schema"]));
        let conversation = Conversation { response_format, ..Conversation::default() };
        let start = StartState::Answer { drop_newlines: true };
        let rules = OutputConstraint::new(&tokenizer, &conversation, start, None).expect("rules").expect("rules");
        let constraint = Constraint(Arc::new(compile(&vocabulary, rules).expect("a grammar")));
        walk(&tokenizer, &constraint, 1, 100, &mut times);
    }
    times.report("schemas");
    let object = Conversation { response_format: ResponseFormat::JsonObject, ..Conversation::default() };
    let constraint = made("json_object", &object, None);
    let mut times = Times::default();
    (0..6).for_each(|seed| walk(&tokenizer, &constraint, seed, 300, &mut times));
    times.report("json_object");
    let wide: serde_json::Map<String, Value> = (0..1000)
        .map(|index| (format!("p{index}"), json!({"type": "string", "pattern": format!("^{index}[a-z]+$")})))
        .collect();
    let wide = json!({"type": "object", "properties": wide});
    let format =
        Conversation { response_format: ResponseFormat::JsonSchema(Json::from(&wide)), ..Conversation::default() };
    made("wide format", &format, None);
}
