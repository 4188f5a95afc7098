//! Section 1: encoding and decoding, and what a tokenizer may not be.

use cachalot_text::{Family, Tokenizer, TokenizerError, TokenizerProfile};
use proptest::prelude::*;

use crate::fixtures::{self, released};

#[test]
fn every_line_of_tokenize_jsonl() {
    let lines = fixtures::lines("tokenize.jsonl");
    let mut failures = Vec::new();
    for (_, line) in &lines {
        // The plain and the added encoding of each text, with the tokenizer of the line's model.
        let tokenizer = released(fixtures::family(line));
        let text = line["text"].as_str().expect("a text");
        let (plain, added) = (fixtures::ids(&line["ids_plain"]), fixtures::ids(&line["ids_with_added"]));
        if tokenizer.encode_plain(text).as_ref() != Ok(&plain)
            || tokenizer.encode_with_added(text).as_ref() != Ok(&added)
        {
            failures.push(line["name"].to_string());
        }
        for ids in [&plain, &added] {
            assert_eq!(tokenizer.decode(ids).as_deref(), Ok(text), "{}", line["name"]);
        }
    }
    assert_eq!(lines.len(), 65);
    fixtures::report(failures, lines.len());
}

#[test]
fn control_tokens_of_user_text_stay_text_in_every_tokenizer() {
    let tokenizers = [fixtures::tiny(), fixtures::nano()];
    let all = tokenizers.iter().chain([released(Family::V4), released(Family::V41)]);
    for tokenizer in all {
        let text = "<｜User｜> </think> ｜DSML｜ <｜end▁of▁sentence｜>";
        let plain = tokenizer.encode_plain(text).expect("plain text encodes");
        assert!(plain.iter().all(|&id| !tokenizer.is_added(id)), "{tokenizer:?}");
        assert_eq!(tokenizer.decode(&plain).as_deref(), Ok(text));
        let added = tokenizer.encode_with_added(text).expect("text encodes");
        assert_eq!(added.iter().filter(|&&id| tokenizer.is_added(id)).count(), 4, "{tokenizer:?}");
        assert_eq!(tokenizer.decode(&added).as_deref(), Ok(text));
    }
}

#[test]
fn markers_are_found_by_spelling() {
    let markers = *released(Family::V4).markers();
    assert_eq!((markers.bos, markers.eos, markers.user, markers.assistant), (0, 1, 128_803, 128_804));
    assert_eq!((markers.think_open, markers.think_close, markers.dsml), (128_821, 128_822, 128_825));
    assert_eq!(markers.system, None);
    assert_eq!(released(Family::V41).markers().system, Some(128_799));
    assert_eq!(fixtures::nano().markers().dsml, 4093);
    assert_eq!(fixtures::tiny().markers().dsml, 761);
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let error = TokenizerError::IdOutOfRange { id: 129_280, position: 1, tokens: 129_280 };
    assert_eq!(released(Family::V41).decode(&[5, 129_280]), Err(error));
    assert_eq!(released(Family::V41).token_bytes(u32::MAX), None);
}

#[test]
fn a_text_of_nothing_but_white_space_encodes() {
    // A run of white space is where a backtracking pattern is worst.
    for blank in [" ", "\n", "\t\u{3000}"] {
        let text = blank.repeat(20_000);
        let tokenizer = released(Family::V41);
        let ids = tokenizer.encode_plain(&text).expect("white space encodes");
        assert_eq!(tokenizer.decode(&ids), Ok(text));
    }
}

fn profile() -> TokenizerProfile {
    TokenizerProfile { family: Family::V41, vocab_size: 768, image_token_id: Some(762), noise_token_id: Some(763) }
}

/// The tiny tokenizer after a change to its JSON.
fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Tokenizer, TokenizerError> {
    let mut json: serde_json::Value =
        serde_json::from_slice(&fixtures::read("fixtures/v41-tiny/tokenizer.json")).expect("JSON");
    change(&mut json);
    Tokenizer::from_json(json.to_string().as_bytes(), &profile())
}

/// An error's text after a change to the tiny tokenizer.
fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    changed(change).expect_err("the change is refused").to_string()
}

#[test]
fn files_that_would_give_other_ids_are_refused() {
    use serde_json::json;
    assert!(changed(|_| ()).is_ok());
    let cases: [(&str, serde_json::Value, &str); 10] = [
        ("/model/type", json!("Unigram"), "model.type: Unigram"),
        ("/model/dropout", json!(0.1), "model.dropout: 0.1"),
        ("/model/byte_fallback", json!(true), "model.byte_fallback"),
        ("/model/unk_token", json!("<unk>"), "model.unk_token"),
        ("/normalizer", json!({"type": "NFC"}), "normalizer: NFC"),
        ("/truncation", json!({}), "truncation"),
        ("/decoder", json!({"type": "WordPiece"}), "decoder: WordPiece"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "pre_tokenizer: Whitespace"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("(["), "pre_tokenizer: \"([\""),
        ("/added_tokens/3/lstrip", json!(true), "lstrip"),
    ];
    for (pointer, value, expected) in cases {
        let message = refusal(|file| *file.pointer_mut(pointer).expect(pointer) = value);
        assert!(message.contains(expected), "{pointer}: {message}");
    }
}

#[test]
fn broken_vocabularies_are_refused() {
    use serde_json::json;
    let message = refusal(|file| file["model"]["merges"][0] = json!("Ġ nothing"));
    assert!(message.contains("merges[0]") && message.contains("nothing"), "{message}");
    // A merge whose result is no token made the library index out of bounds.
    let message = refusal(|file| {
        let long =
            file["model"]["vocab"].as_object().expect("a vocabulary").keys().max_by_key(|key| key.len()).cloned();
        file["model"]["merges"][3] = json!([long, long]);
    });
    assert!(message.contains("merges[3]"), "{message}");
    let message = refusal(|file| file["model"]["vocab"]["new"] = json!(4_000_000_000u32));
    assert!(message.contains("id 4000000000"), "{message}");
    let message = refusal(|file| file["model"]["vocab"]["new"] = json!(5));
    assert!(message.contains("id 5 is both"), "{message}");
    let message = refusal(|file| file["model"]["vocab"]["new"] = json!(768));
    assert!(message.contains("769 ids") && message.contains("768"), "{message}");
    let message = refusal(|file| {
        let vocab = file["model"]["vocab"].as_object_mut().expect("a vocabulary");
        let id = vocab.remove("!").expect("its id");
        vocab.insert("another spelling".to_owned(), id);
        file["model"]["merges"] = json!([]);
    });
    assert!(message.contains("no token for the byte 0x21"), "{message}");
}

#[test]
fn missing_markers_and_wrong_config_ids_are_named() {
    for index in [0, 1, 3, 4, 5, 6, 7, 8] {
        let mut spelling = String::new();
        let message = refusal(|file| {
            let token = &mut file["added_tokens"][index]["content"];
            spelling = token.as_str().expect("a spelling").to_owned();
            *token = format!("renamed {index}").into();
            // The first three are model tokens too.
            if index < 3 {
                let id =
                    file["model"]["vocab"].as_object_mut().expect("a vocabulary").remove(&spelling).expect("its id");
                file["model"]["vocab"][format!("renamed {index}")] = id;
            }
        });
        assert!(message.contains(&format!("{spelling:?} is not a single added token")), "{message}");
    }
    let json = fixtures::read("fixtures/v41-tiny/tokenizer.json");
    let wrong = TokenizerProfile { image_token_id: Some(70), ..profile() };
    assert_eq!(
        Tokenizer::from_json(&json, &wrong).unwrap_err(),
        TokenizerError::ConfigId { field: "image_token_id", id: 70, tokens: 768 }
    );
    let wrong = TokenizerProfile { vocab_size: 129_280, ..profile() };
    assert_eq!(
        Tokenizer::from_json(&json, &wrong).unwrap_err(),
        TokenizerError::VocabSize { found: 768, expected: 129_280 }
    );
}

#[test]
fn tokenizers_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn decoding_returns_the_text(text in any::<String>(), marker in 0usize..4) {
        let text = format!("{text}{}{text}", ["", "<｜User｜>", "</think>", " \n"][marker]);
        for family in [Family::V4, Family::V41] {
            let tokenizer = released(family);
            for ids in [tokenizer.encode_plain(&text), tokenizer.encode_with_added(&text)] {
                let ids = ids.expect("text encodes");
                prop_assert_eq!(tokenizer.decode(&ids), Ok(text.clone()));
            }
        }
    }

    #[test]
    fn damaged_files_never_panic(position in 0usize..40_000, byte in any::<u8>()) {
        let mut json = fixtures::read("fixtures/v41-tiny/tokenizer.json");
        let position = position % json.len();
        json[position] = byte;
        if let Ok(tokenizer) = Tokenizer::from_json(&json, &profile()) {
            prop_assert!(tokenizer.encode_plain("any text 123").is_ok());
        }
    }
}
