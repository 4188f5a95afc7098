//! The commands that run no model, and what all commands share

use crate::support::{cachalot, fixture, repository};

#[test]
fn inspect_speaks_to_people_and_programs() {
    let nano = repository("models/nano").display().to_string();
    let run = cachalot(&["inspect", &nano]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{run:?}");
    for part in ["deepseek_v41", "parameters", "routed experts", "cache at", "can do: text, vision\n"] {
        assert!(run.out.contains(part), "no {part:?} in {}", run.out);
    }
    let tiny = cachalot(&["inspect", "--json", &fixture("v41-tiny")]).json();
    assert_eq!((&tiny["layers"], &tiny["vocabulary"]), (&14.into(), &768.into()));
    assert_eq!((&tiny["vision"], &tiny["draft"]), (&true.into(), &true.into()));
    assert!(tiny["memory"]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1_000_000));
}

#[test]
fn inspect_does_not_wait_for_data() {
    let folder = crate::support::copy("models/nano");
    let shard = folder.path().join("model-00001-of-00001.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&shard).expect("a shard");
    let length = file.metadata().expect("metadata").len();
    file.set_len(length / 2).expect("cut");
    let path = folder.path().display().to_string();
    let run = cachalot(&["inspect", &path]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.contains("not complete: model-00001-of-00001.safetensors"), "{}", run.out);
    cachalot(&["run", "--model", &path, "hi"]).refused(1, &["model-00001-of-00001.safetensors"]);
}

#[test]
fn every_shell_gets_completions() {
    for (shell, part) in [("bash", "complete -F"), ("zsh", "#compdef cachalot"), ("fish", "complete -c cachalot")] {
        let run = cachalot(&["completions", shell]);
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{shell}");
        for part in [part, "repetition-penalty", "arithmetic"] {
            assert!(run.out.contains(part), "{shell}: no {part:?}");
        }
    }
    cachalot(&["completions", "abacus"]).refused(2, &["abacus"]);
}

#[test]
fn help_has_examples_and_exit_codes() {
    for command in ["run", "chat", "forward", "bench kernels", "synth"] {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let run = cachalot(&words);
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{command}");
        assert!(run.out.contains("Example") && run.out.contains(&format!("cachalot {command}")), "{}", run.out);
    }
    for command in ["", "run", "chat", "serve", "plan", "trace", "synth", "bench decode", "bench abilities"] {
        let words: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = cachalot(&words).out;
        let lines: Vec<&str> = help.lines().skip_while(|line| *line != "Examples:").skip(1).collect();
        assert!(!lines.is_empty(), "{command}");
        // Paragraphs are wrapped once, by whoever knows how wide the terminal is: a line ends where no word has room.
        let words = |line: &str| !line.is_empty() && !line.starts_with(' ');
        for pair in lines.windows(2).filter(|pair| pair.iter().all(|line| words(line))) {
            let next = pair[1].split(' ').next().map_or(0, str::len);
            assert!(pair[0].len() + 1 + next > 100, "{command}: {pair:?}");
        }
        assert!(lines.iter().all(|line| line.len() <= 110), "{command}: {help}");
    }
    let help = cachalot(&["--help"]).out;
    for part in ["Exit codes:", "NO_COLOR", "130", "run", "chat", "inspect", "forward", "bench", "completions"] {
        assert!(help.contains(part), "no {part:?} in {help}");
    }
    let replay = cachalot(&["run", "--help"]).out;
    assert!(replay.contains("The vendor's approximation"), "{replay}");
    cachalot(&[]).refused(2, &["Usage"]);
    assert!(cachalot(&["--version"]).out.starts_with("cachalot 0."));
}

#[test]
fn the_bench_says_what_this_machine_lacks() {
    cachalot(&["bench", "kernels", "--isa", "abacus"]).refused(1, &["no abacus", "portable"]);
    cachalot(&["bench", "kernels", "--model", "v5"]).refused(2, &["v5", "v4-flash, v4-pro, v4.1-flash"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = crate::support::program(&["completions", "bash"]).spawn().expect("the program starts");
    drop(child.stdout.take());
    let run = crate::support::finished(child.wait_with_output().expect("the program ends"));
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{run:?}");
}

#[test]
fn synth_writes_what_inspect_reads() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("flash").display().to_string();
    let run = cachalot(&["synth", "v4-flash", "--headers-only", "--layers", "4", &path]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.contains("in 6 shards of headers"), "{run:?}");
    let inspection = cachalot(&["inspect", "--json", &path]).json();
    assert_eq!((&inspection["layers"], &inspection["draft"]), (&4.into(), &false.into()));
    let hollow = "model-00001-of-00006.safetensors holds its header only";
    cachalot(&["run", "--model", &path, "hi"]).refused(1, &[hollow]);
    cachalot(&["synth", "v4-flash", &path]).refused(1, &["is not empty"]);
    let other = folder.path().join("other").display().to_string();
    cachalot(&["synth", "v4-flash", "--layers", "44", &other]).refused(1, &["--layers 44: 1 to 43 are possible"]);
    cachalot(&["synth", "v5", &other]).refused(2, &["v5", "lite-200b"]);
    assert!(!std::path::Path::new(&other).exists());
}

#[test]
fn uses_of_experts_are_recorded_and_replayed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("uses.jsonl").display().to_string();
    let run = cachalot(&["trace", "record", "--temperature", "0", "--out", &file, "What is the capital of Japan?"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.contains("Tokyo") && run.err.contains("uses of experts written"), "{run:?}");
    let run = cachalot(&["trace", "replay", &file, "--slots", "4", "--slots", "40", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    let lines = report["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 2 * 7);
    let rate = |line: &serde_json::Value| line["hit_rate"].as_f64().expect("a rate");
    for of_size in lines.chunks(7) {
        assert!(of_size.iter().all(|line| rate(line) <= rate(&of_size[6])), "nothing beats the best: {of_size:?}");
    }
    assert!(rate(&lines[6]) < rate(&lines[13]), "more slots hit more");
    let table = cachalot(&["trace", "replay", &file]).out;
    assert!(table.contains("LRU") && table.contains("Belady"), "{table}");
    // Before the question is answered.
    cachalot(&["trace", "record", "--out", "/nowhere/x", "Hello"]).refused(1, &["cannot write /nowhere/x"]);
    std::fs::write(&file, "nonsense").expect("written");
    cachalot(&["trace", "replay", &file]).refused(1, &["line 1 of the trace"]);
    cachalot(&["trace", "replay", "/nowhere"]).refused(1, &["/nowhere"]);
}

#[test]
fn stats_say_what_came_from_where() {
    let run = cachalot(&["run", "--stats", "What is the capital of Japan?"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    for part in ["experts: ", "from memory", "from disk", "waited for experts", "% of what memory gives"] {
        assert!(run.err.contains(part), "{part}: {run:?}");
    }
    assert!(!run.err.contains("what the disk gave"), "the model that ships is in memory: {run:?}");
    let run = cachalot(&["run", "--json", "--stats", "What is the capital of Japan?"]);
    let object: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    assert!(object["stats"]["expert_hit_rate"].as_f64().is_some_and(|rate| (0.0..=1.0).contains(&rate)), "{object}");
    let share = object["roofline"]["memory_share"].as_f64();
    assert!(share.is_some_and(|share| share > 0.0 && share < 1.5), "{object}");
    assert!(object["timings"]["computed_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{object}");
}
