//! `cachalot run`

use crate::support::{cachalot, file, fixture, piped};

const QUESTION: &str = "What is the capital of Japan?";
const ANSWER: &str = "The capital of Japan is Tokyo.";

#[test]
fn the_model_that_ships_answers() {
    for arithmetic in ["exact", "fast", "vendor"] {
        let run = cachalot(&["run", "--temperature", "0", "--arithmetic", arithmetic, QUESTION]);
        assert_eq!(
            (run.code, run.out.as_str()),
            (Some(0), "The capital of Japan is Tokyo.\n"),
            "{arithmetic}: {run:?}"
        );
        for part in ["small test model that ships", "prompt 11 tokens", "first token after", "answer 9 tokens at"] {
            assert!(run.err.contains(part), "no {part:?} in {run:?}");
        }
        assert!(!run.err.contains('\x1b'), "no styles where there is no terminal: {run:?}");
    }
}

#[test]
fn files_and_piped_input_are_appended() {
    let (_folder, path) = file("What is the capital\n");
    let words = cachalot(&["run", "--temperature", "0", "What", "is the capital of", "Japan?"]);
    assert_eq!(words.out, format!("{ANSWER}\n"));
    let pipe = piped(&["run", "--temperature", "0", "--json"], format!("{QUESTION}\n").as_bytes());
    assert_eq!(pipe.json()["answer"], ANSWER);
    let tokens = |run: crate::support::Run| run.json()["usage"]["prompt_tokens"].as_u64().expect("a number");
    let together = piped(&["run", "--json", "--max-tokens", "1", "Hm:", "--file", &path], b"of Japan?");
    let spelled = cachalot(&["run", "--json", "--max-tokens", "1", "Hm:\n\nWhat is the capital\n\nof Japan?"]);
    assert_eq!(tokens(together), tokens(spelled));
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_the_threads() {
    let run = |seed: &str, threads: &str| {
        let model = fixture("v41-tiny");
        let mut arguments = vec!["run", "--json", "--model", &model, "--max-tokens", "24", "--no-think", "Hello"];
        arguments.extend(["--seed", seed, "--threads", threads, "--arithmetic", "fast"]);
        let object = cachalot(&arguments).json();
        assert_eq!(object["sampling"]["seed"].to_string(), seed);
        object["answer"].as_str().expect("a text").to_owned()
    };
    assert_eq!(run("7", "1"), run("7", "2"));
    assert_ne!(run("7", "1"), run("8", "1"));
}

#[test]
fn json_holds_everything_and_nothing_else_is_said() {
    let run = cachalot(&["run", "--json", "--temperature", "0", "--logprobs", "2", QUESTION]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{run:?}");
    assert_eq!(run.out.lines().count(), 1);
    let object = run.json();
    assert_eq!((&object["answer"], &object["finish"]), (&ANSWER.into(), &"stop".into()));
    assert!(object["reasoning"].is_null());
    assert_eq!(object["usage"]["prompt_tokens"], 11);
    assert_eq!(object["usage"]["generated_tokens"], 9);
    for figure in ["prefill_seconds", "time_to_first_token_seconds", "decode_seconds", "decode_tokens_per_second"] {
        assert!(object["timings"][figure].as_f64().is_some_and(|value| value > 0.0), "{figure}: {object}");
    }
    assert_eq!(object["sampling"]["temperature"], 0.0);
    assert!(object["sampling"]["seed"].is_u64(), "a seed that was drawn is shown");
    let tokens = object["logprobs"].as_array().expect("a list");
    let text: String = tokens.iter().map(|token| token["token"].as_str().expect("a text")).collect();
    assert_eq!(text, ANSWER);
    for token in tokens {
        let top = token["top"].as_array().expect("a list");
        assert_eq!((top.len(), &top[0]["id"]), (2, &token["id"]), "greedy takes the most likely");
        assert!(token["logprob"].as_f64().is_some_and(|value| value <= 0.0 && value > -20.0), "{token}");
    }
    let without = cachalot(&["run", "--json", "--max-tokens", "2", QUESTION]).json();
    assert!(without.get("logprobs").is_none());
    assert_eq!((&without["finish"], &without["usage"]["generated_tokens"]), (&"length".into(), &2.into()));
}

#[test]
fn stop_strings_end_the_answer() {
    let run = cachalot(&["run", "--json", "--temperature", "0", "--stop", "xyz", "--stop", " of J", QUESTION]).json();
    assert_eq!((&run["answer"], &run["finish"]), (&"The capital".into(), &"stop_sequence".into()));
    assert_eq!(run["stop_sequence"], " of J");
}

#[test]
fn reasoning_goes_to_standard_error() {
    // A random model: it never ends its reasoning, and never reasons when told not to.
    let model = fixture("v41-tiny");
    let base = ["run", "--model", &model, "--temperature", "0", "--max-tokens", "12", "Hello"];
    let thinking = cachalot(&base);
    assert_eq!((thinking.code, thinking.out.as_str()), (Some(0), ""), "{thinking:?}");
    assert!(thinking.err.lines().count() > 1, "{thinking:?}");
    let plain = cachalot(&[&base[..], &["--no-think"]].concat());
    assert!(plain.out.len() > 1 && plain.err.lines().count() == 1, "{plain:?}");
    let object = cachalot(&[&base[..], &["--json", "--effort", "42", "--system", "Be brief."]].concat()).json();
    assert!(object["reasoning"].as_str().is_some_and(|text| !text.is_empty()), "{object}");
    assert_eq!(object["answer"], "");
    let nano = cachalot(&["run", "--json", "--think", "--max-tokens", "2", "--temperature", "0", QUESTION]).json();
    assert!(!nano["reasoning"].is_null(), "the model that ships reasons when told to: {nano}");
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_the_numbers() {
    let run = cachalot(&["run", "--context", "8", QUESTION]);
    run.refused(1, &["11 tokens", "context holds 8", "131072"]);
    let run = cachalot(&["run", "--context", "20", "--max-tokens", "10", QUESTION]);
    run.refused(1, &["20 tokens", "21 tokens", "11 in the messages, 10 in the completion"]);
    let long = QUESTION.repeat(20_000);
    piped(&["run"], long.as_bytes()).refused(1, &["context holds 131072"]);
    let run = cachalot(&["run", "--json", "--context", "8", QUESTION]);
    run.refused(1, &[]);
    let error: serde_json::Value = serde_json::from_str(&run.err).expect("errors are JSON too");
    assert!(error["error"].as_str().is_some_and(|text| text.contains("11 tokens")), "{error}");
    let full = cachalot(&["run", "--json", "--context", "14", "--temperature", "0", QUESTION]).json();
    assert_eq!((&full["finish"], &full["usage"]["generated_tokens"]), (&"length".into(), &3.into()));
}

#[test]
fn mistakes_are_refused() {
    cachalot(&["run"]).refused(1, &["nothing to ask"]);
    cachalot(&["run", "--file", "/no/such/file", "x"]).refused(1, &["/no/such/file"]);
    piped(&["run"], b"\xff\xfe").refused(1, &["standard input is not UTF-8"]);
    cachalot(&["run", "--model", "/no/such/model", "x"]).refused(1, &["no model at /no/such/model"]);
    cachalot(&["run", "--temperature", "3", "x"]).refused(1, &["temperature is 3", "between 0 and 2"]);
    cachalot(&["run", "--presence-penalty", "-3", "x"]).refused(1, &["presence_penalty is -3"]);
    for arguments in [
        &["--arithmetic", "nearly", "x"][..],
        &["--threads", "0", "x"],
        &["--context", "1", "x"],
        &["--effort", "0", "x"],
        &["--logprobs", "2", "x"],
        &["--nonsense"],
    ] {
        cachalot(&[&["run"], arguments].concat()).refused(2, &["--"]);
    }
}

#[test]
fn replay_answers_too() {
    let run = cachalot(&["run", "--temperature", "0", "--prefill", "replay", QUESTION]);
    assert_eq!(run.out, format!("{ANSWER}\n"), "a prompt within the window is processed exactly: {run:?}");
}

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let run = cachalot(&["run", "--temperature", "2", "--regex", "(yes|no), [0-9]{3}", QUESTION]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let (word, number) = run.out.trim_end().split_once(", ").expect("two parts");
    assert!(["yes", "no"].contains(&word) && number.len() == 3 && number.parse::<u16>().is_ok(), "{run:?}");
    let (_folder, path) = file(r#"{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}"#);
    let run = cachalot(&["run", "--temperature", "2", "--seed", "1", "--json", "--json-schema", &path, QUESTION]);
    let object = run.json();
    let answer: serde_json::Value =
        serde_json::from_str(object["answer"].as_str().expect("a text")).expect("the answer is JSON");
    assert!(answer["n"].is_i64(), "{answer}");
    let (_folder, path) = file("start: \"a\" | \"b\" start");
    let run = cachalot(&["run", "--temperature", "2", "--grammar", &path, QUESTION]);
    assert!(run.out.trim_end().trim_start_matches('b') == "a", "{run:?}");
    let (_folder, path) = file(r#"{"not": {"type": "null"}}"#);
    cachalot(&["run", "--json-schema", &path, QUESTION]).refused(1, &["response_format.schema/not", "\"not\""]);
    cachalot(&["run", "--json-schema", &path, "--regex", "a", QUESTION]).refused(2, &["--regex"]);
}
