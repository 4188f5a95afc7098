//! Ctrl-C
#![cfg(unix)]

use std::io::{BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use crate::support::{Run, finished, fixture, program};

/// A model that goes on for hundreds of tokens.
fn endless(command: &str, more: &[&str]) -> Command {
    let model = fixture("v41-tiny");
    let command: Vec<&str> = command.split(' ').collect();
    let base = ["--model", &model, "--no-think", "--temperature", "0"];
    program(&[&command, &base[..], more].concat())
}

fn press_ctrl_c(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
}

/// Waits until the answer has begun.
fn first_byte(child: &mut Child) -> (Vec<u8>, BufReader<std::process::ChildStdout>) {
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut byte = [0];
    out.read_exact(&mut byte).expect("an answer begins");
    (byte.to_vec(), out)
}

fn end(child: Child, mut begun: Vec<u8>, mut out: impl Read) -> Run {
    out.read_to_end(&mut begun).expect("readable");
    let run = finished(child.wait_with_output().expect("the program ends"));
    Run { out: String::from_utf8(begun).expect("no character is split"), ..run }
}

#[test]
fn it_stops_an_answer_and_says_so() {
    let mut child = endless("run", &["Hello"]).spawn().expect("the program starts");
    let (begun, out) = first_byte(&mut child);
    press_ctrl_c(&child);
    let run = end(child, begun, out);
    assert_eq!(run.code, Some(130), "{run:?}");
    assert!(run.err.contains("interrupted") && run.err.contains("tokens/s"), "{run:?}");
}

#[test]
fn what_was_recorded_until_then_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("uses").display().to_string();
    let mut child = endless("trace record", &["--out", &file, "Hello"]).spawn().expect("the program starts");
    let (begun, out) = first_byte(&mut child);
    press_ctrl_c(&child);
    let run = end(child, begun, out);
    assert!(run.code == Some(130) && run.err.contains("uses of experts written"), "{run:?}");
    assert!(std::fs::metadata(&file).expect("written").len() > 0);
}

#[test]
fn it_keeps_the_conversation() {
    let mut child = endless("chat", &[]).stdin(Stdio::piped()).spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"Hello\n").expect("written");
    let (begun, out) = first_byte(&mut child);
    press_ctrl_c(&child);
    // The program must have stopped the answer before it reads on, or the second press would end it.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("talk.json");
    input.write_all(format!("/save {}\n/exit\n", path.display()).as_bytes()).expect("written");
    let run = end(child, begun, out);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.err.contains("interrupted"), "{run:?}");
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("saved")).expect("JSON");
    let answer = saved["messages"][1]["content"].as_str().expect("what was said so far");
    assert_eq!(format!("{answer}\n").trim_end(), run.out.trim_end());
}
