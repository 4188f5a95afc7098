//! `cachalot chat`, with its lines piped in

use crate::support::{Run, fixture, piped, piped_into, program};

fn chat(arguments: &[&str], lines: &str) -> Run {
    piped(&[&["chat", "--temperature", "0"], arguments].concat(), lines.as_bytes())
}

#[test]
fn one_answer_for_each_message() {
    let run = chat(&[], "What is the capital of Japan?\n\nWhat is the capital of France?");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(run.out, "The capital of Japan is Tokyo.\nThe capital of France is Paris.\n");
    assert!(run.err.contains(" kept)"), "the second prompt goes on from the first: {run:?}");
    assert!(!run.err.contains('\x1b') && !run.err.contains("> "), "{run:?}");
}

#[test]
fn commands_do_what_they_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("talk.json");
    let path = path.display();
    let run = chat(
        &["--system", "Be kind."],
        &format!(
            "/help\n/system\nWhat is the capital of \\\nJapan?\n/regenerate\n/stats\n/save {path}\n/clear\n/stats\n\
             /think on\n/think off\n/effort max\n/load {path}\n/regenerate\n/system -\n/system\n/exit\nnot reached\n"
        ),
    );
    assert_eq!(run.code, Some(0), "{run:?}");
    let answers: Vec<&str> = run.out.lines().collect();
    assert_eq!(answers.len(), 3, "{run:?}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "greedy answers are the same: {run:?}");
    for part in [
        "answer the last message anew",
        "Be kind.",
        "2 answers,",
        "seed ",
        "experts: ",
        "(3 messages saved",
        "(forgotten)",
        "0 of 131072 tokens of context",
        "(thinking on)",
        "(effort set",
        "(3 messages loaded",
        "(no instructions)",
    ] {
        assert!(run.err.contains(part), "no {part:?} in {}", run.err);
    }
    let saved: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path.to_string()).expect("saved")).expect("JSON");
    assert_eq!(saved["messages"][1]["content"], "What is the capital of \nJapan?");
    assert_eq!(saved["messages"][2]["role"], "assistant");
}

#[test]
fn a_chat_goes_on_after_the_program_has_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let resumed = |lines: &str, arguments: &[&str]| {
        let arguments = [&["chat", "--temperature", "0", "--keep", "1G"], arguments].concat();
        let mut command = program(&arguments);
        command.env("XDG_CACHE_HOME", folder.path()).env("XDG_STATE_HOME", folder.path());
        piped_into(command, lines.as_bytes())
    };
    resumed("", &["--resume"]).refused(1, &["no chat to go on with"]);
    // Piped lines are no chat to go on with, unless asked for.
    let first = resumed("What is the capital of Japan?", &[]);
    assert_eq!(first.code, Some(0), "{first:?}");
    resumed("", &["--resume"]).refused(1, &["no chat to go on with"]);
    let talk = folder.path().join("cachalot/last-chat.json");
    let question = "What is the capital of France? There is no hurry. ".repeat(8);
    let saved = serde_json::json!({"thinking": false, "effort": "high", "messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "The capital of France is Paris."},
    ]});
    std::fs::write(&talk, saved.to_string()).expect("written");
    let second = resumed("What is the capital of Japan?\n", &["--resume"]);
    assert!(second.code == Some(0) && !second.out.is_empty(), "{second:?}");
    assert!(second.err.contains("(2 messages loaded"), "{second:?}");
    // The third run finds the conversation, and the state of it on the disk.
    let third = resumed("/regenerate\n", &["--resume"]);
    assert_eq!(third.out, second.out, "{third:?}");
    assert!(third.err.contains("(4 messages loaded") && third.err.contains(" kept)"), "{third:?}");
    let private = std::fs::metadata(&talk).expect("kept").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&private) & 0o077, 0, "others cannot read it");
}

#[test]
fn blocks_are_one_message() {
    let one = chat(&[], "\"\"\"\nWhat is the capital\n/help\n\"\"\"\n/stats\n");
    assert_eq!(one.code, Some(0), "{one:?}");
    assert!(one.err.contains("1 answers,") && !one.err.contains("/regenerate"), "{one:?}");
}

#[test]
fn what_fails_is_said_and_the_chat_goes_on() {
    let run = chat(
        &["--context", "40"],
        "/regenerate\n/nonsense\n/load /no/such/file\n/save /no/such/folder/file\n\
         What is the capital of Japan? What is the capital of Japan? What is the capital of Japan? What is the capital \
         of Japan? What is the capital of Japan? What is the capital of Japan?\nWhat is the capital of Japan?\n",
    );
    assert_eq!(run.code, Some(1), "a piped chat says at the end that something failed: {run:?}");
    assert_eq!(run.out, "The capital of Japan is Tokyo.\n", "the message that was too long is forgotten: {run:?}");
    for part in
        ["nothing to answer anew", "/nonsense is no command", "/no/such/file", "cannot write", "context holds 40"]
    {
        assert!(run.err.contains(part), "no {part:?} in {}", run.err);
    }
}

#[test]
fn a_conversation_that_is_full_is_refused_with_the_numbers() {
    let run = chat(&["--context", "32"], &"What is the capital of Japan?\n".repeat(3));
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.out.starts_with("The capital of Japan is Tokyo.\n"), "{run:?}");
    assert!(run.err.contains("the context holds 32"), "{run:?}");
}

#[test]
fn a_seed_is_another_one_when_an_answer_is_made_anew() {
    let model = fixture("v41-tiny");
    let arguments = ["chat", "--model", &model, "--no-think", "--seed", "5", "--max-tokens", "8"];
    let twice = piped(&arguments, b"Hello\n/regenerate\n/stats\n");
    assert!(twice.err.contains("seed 6"), "{twice:?}");
}
