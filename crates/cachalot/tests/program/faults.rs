//! What can go wrong with disk and memory while the real program runs.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{cachalot, finished, fixture, piped, program};

/// A model whose experts are read all the time.
fn streamed<'a>(command: &'a str, model: &'a str) -> Vec<&'a str> {
    vec![command, "--model", model, "--no-think", "--temperature", "0", "--expert-cache", "0"]
}

#[test]
fn a_disk_that_stalls_makes_an_answer_late_and_not_wrong() {
    let model = fixture("v41-tiny");
    let base = [streamed("run", &model), vec!["--max-tokens", "12", "Hello"]].concat();
    let expected = cachalot(&base);
    let start = Instant::now();
    let run = cachalot(&[&base[..], &["--fault", "delay=1.5@700..701"]].concat());
    assert!(start.elapsed() > Duration::from_millis(1500));
    assert_eq!((run.code, &run.out), (Some(0), &expected.out), "{run:?}");
    cachalot(&[&base[..], &["--fault", "fire@1..2"]].concat()).refused(2, &["eio@400..500"]);
}

#[test]
fn a_disk_that_fails_is_named_and_the_chat_goes_on_when_it_recovers() {
    let model = fixture("v41-tiny");
    let base = [streamed("chat", &model), vec!["--max-tokens", "8"]].concat();
    let input = "Hello\n".repeat(5);
    let healthy = piped(&base, input.as_bytes());
    let run = piped(&[&base[..], &["--fault", "eio@600..680"]].concat(), input.as_bytes());
    for part in ["model-0000", "reading ", " at offset ", "Input/output error"] {
        assert!(run.err.contains(part), "no {part:?} in {run:?}");
    }
    let twice = |line: &str| line.matches("Input/output error").count() > 1;
    assert!(!run.err.lines().any(twice), "{run:?}");
    // A message that failed is taken back: the next one is answered as if there had been none.
    assert!(!run.out.is_empty() && run.out.len() < healthy.out.len() && healthy.out.starts_with(&run.out), "{run:?}");
    let last = run.err.trim_end().lines().last().unwrap_or_default();
    assert!(run.code == Some(1) && last.contains("tokens/s") && !run.err.contains("panicked"), "{run:?}");
}

#[test]
fn ctrl_c_works_while_the_disk_hangs() {
    let model = fixture("v41-tiny");
    let arguments =
        [streamed("run", &model), vec!["--max-tokens", "400", "--fault", "delay=60@3000..", "Hello"]].concat();
    let mut child = program(&arguments).spawn().expect("the program starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut byte = [0];
    out.read_exact(&mut byte).expect("an answer begins");
    // By now, or in a moment, it waits for a read that takes a minute.
    std::thread::sleep(Duration::from_millis(1500));
    let start = Instant::now();
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).expect("readable");
    let run = finished(child.wait_with_output().expect("the program ends"));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(run.code == Some(130) && run.err.contains("interrupted"), "{run:?}");
}

#[test]
fn no_room_for_what_is_remembered_costs_a_note_and_no_answer() {
    let model = fixture("v41-tiny");
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [streamed("run", &model), vec!["--max-tokens", "4", "Hello"]].concat();
    let expected = cachalot(&arguments);
    // A full disk: no byte can be written to any file.
    let plain = program(&arguments);
    let full = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("XDG_CACHE_HOME", folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let run = finished(full);
    assert_eq!((run.code, &run.out), (Some(0), &expected.out), "{run:?}");
    assert!(run.err.contains("could not be noted for the next start"), "{run:?}");
    let names = std::fs::read_dir(folder.path().join("cachalot")).expect("the directory was made");
    let names = names.map(|entry| entry.expect("an entry").file_name().display().to_string());
    assert!(!names.into_iter().any(|name| name.starts_with("hot")), "half a file is not left behind");
}

/// The largest resident set so far, in bytes.
#[cfg(target_os = "linux")]
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().strip_suffix(" kB").and_then(|number| number.trim().parse::<u64>().ok()).expect("a number") * 1024
}

/// A checkpoint larger than the memory that is allowed: it runs, and takes no more than was printed.
#[cfg(target_os = "linux")]
#[test]
fn the_process_stays_below_the_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    let config = std::fs::read(crate::support::repository("fixtures/v4-tiny/config.json")).expect("a config");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    for (field, value) in [("moe_intermediate_size", 2048), ("n_routed_experts", 160), ("num_nextn_predict_layers", 0)]
    {
        config[field] = value.into();
    }
    let written = cachalot_synth::synth(config, &path, &cachalot_synth::Options::default(), &|_, _| true);
    let written = written.expect("a checkpoint");
    let model = path.display().to_string();
    for memory in ["400M", "276M"] {
        let limits = ["--memory", memory, "--context", "512"];
        let plan = cachalot(&[&["plan", &model, "--json", "--disk-rate", "1"], &limits[..]].concat()).json();
        let total = plan["memory"]["total"].as_u64().expect("a number");
        assert!(written.bytes > total + total / 4, "{} bytes of weights in {total}", written.bytes);
        let arguments = [&["chat", "--model", &model, "--no-think", "--max-tokens", "12"], &limits[..]].concat();
        let mut child = program(&arguments).stdin(Stdio::piped()).spawn().expect("the program starts");
        let (mut input, errors) = (child.stdin.take().expect("piped"), child.stderr.take().expect("piped"));
        // A prompt of several steps and an answer, then one that goes on from there.
        let long = "Why is the sky blue, and why is the sea? ".repeat(12);
        input.write_all(format!("{long}\nHello\n").as_bytes()).expect("written");
        let answered = BufReader::new(errors).lines().map_while(Result::ok).filter(|line| line.contains("tokens/s"));
        assert_eq!(answered.take(2).count(), 2, "two answers");
        let peak = peak(child.id());
        drop(input);
        let run = finished(child.wait_with_output().expect("the program ends"));
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(peak <= total, "{peak} bytes of {total} at most: {plan}");
        // The plan is no wild guess either.
        assert!(peak > total / 4, "{peak} bytes of {total}: {plan}");
    }
}
