//! States on the disk: they survive the program, whatever ends it, and never change a token.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cachalot_engine::session::{Prefill, Session};
use cachalot_engine::{Engine, EngineOptions, KeepOptions};
use cachalot_storage::Directory;

use crate::{generate, greedy, ids, options, repository};

type Damage = fn(&Path);

const MODEL: &str = "fixtures/v41-pairs";
/// Where a child of this test keeps its states.
const CHILD: &str = "CACHALOT_TEST_KEEP";

fn keeping(directory: &Path, bytes: u64) -> Arc<Engine> {
    let keep = Some(KeepOptions { directory: directory.to_owned(), bytes });
    let options = EngineOptions { keep, ..options() };
    Arc::new(Engine::open(Arc::new(Directory::new(repository(MODEL))), &options, &mut |_| ()).expect("a model"))
}

fn kept(directory: &Path) -> Arc<Engine> {
    keeping(directory, 1 << 30)
}

/// Answers `prompt` on `engine`, checks the answer against a fresh one, and returns how many tokens were kept.
fn answer(engine: &Arc<Engine>, prompt: &[u32]) -> usize {
    let request = greedy(5, Prefill::Exact);
    let (tokens, outcome) = generate(&mut Session::new(Arc::clone(engine)), prompt, &request);
    let (fresh, anew) = generate(&mut Session::new(crate::engine(MODEL)), prompt, &request);
    assert_eq!((tokens, anew.cached_tokens), (fresh, 0));
    outcome.cached_tokens
}

fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let store = std::fs::read_dir(directory).expect("a directory").next().expect("a store").expect("a store").path();
    let entries = std::fs::read_dir(store).expect("a store").map(|entry| entry.expect("a file").path());
    let mut files: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    files.sort();
    files
}

#[test]
fn a_prompt_is_not_processed_again_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    // Shorter than a block, and longer than one.
    for length in [100, 1100] {
        let prompt = ids(length, length % 7);
        assert_eq!(answer(&kept(directory.path()), &prompt), 0);
        let again = kept(directory.path());
        assert_eq!(again.notes().len(), 0, "{:?}", again.notes());
        assert_eq!(answer(&again, &prompt), length - 1);
        drop(again);
        let longer = [&prompt[..], &ids(40, 7)].concat();
        assert!(answer(&kept(directory.path()), &longer) >= length);
        // Another prompt that shares the blocks, not the end.
        let other = [&prompt[..length - 30], &ids(50, 8)].concat();
        assert_eq!(answer(&kept(directory.path()), &other), 0);
    }
}

#[test]
fn another_model_or_another_way_of_computing_has_states_of_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let prompt = ids(100, 0);
    answer(&kept(directory.path()), &prompt);
    let keep = Some(KeepOptions { directory: directory.path().to_owned(), bytes: 1 << 30 });
    let fast = EngineOptions { arithmetic: cachalot_model::Arithmetic::Fast, keep: keep.clone(), ..options() };
    for (model, options) in [(MODEL, fast), ("fixtures/v4-tiny", EngineOptions { keep, ..options() })] {
        let files = Arc::new(Directory::new(repository(model)));
        let engine = Arc::new(Engine::open(files, &options, &mut |_| ()).expect("a model"));
        let (_, outcome) = generate(&mut Session::new(engine), &prompt, &greedy(2, Prefill::Exact));
        assert_eq!(outcome.cached_tokens, 0, "{model}");
    }
    // The approximate prefill neither uses nor leaves anything.
    let engine = kept(directory.path());
    let prompt = ids(400, 5);
    let (_, outcome) = generate(&mut Session::new(Arc::clone(&engine)), &prompt, &greedy(2, Prefill::Replay));
    assert_eq!(outcome.cached_tokens, 0);
    drop(engine);
    assert_eq!(answer(&kept(directory.path()), &prompt), 0);
}

#[test]
fn what_is_damaged_is_dropped_and_said_and_never_used() {
    let prompt = ids(1100, 1);
    let damage: [(&str, Damage); 5] = [
        ("flipped bits", |directory| {
            let segment = &files(directory, ".dat")[0];
            let mut bytes = std::fs::read(segment).expect("a file");
            bytes.iter_mut().step_by(5000).for_each(|byte| *byte ^= 4);
            std::fs::write(segment, bytes).expect("it is written");
        }),
        ("a shorter segment", |directory| {
            let segment = &files(directory, ".dat")[0];
            let bytes = std::fs::read(segment).expect("a file");
            std::fs::write(segment, &bytes[..bytes.len() / 4]).expect("it is written");
        }),
        ("no segments", |directory| {
            files(directory, ".dat").iter().for_each(|file| std::fs::remove_file(file).expect("it is removed"));
        }),
        ("an index of noise", |directory| {
            std::fs::write(&files(directory, ".redb")[0], ids(9000, 3).iter().map(|id| *id as u8).collect::<Vec<_>>())
                .expect("it is written");
        }),
        ("a cut index", |directory| {
            let index = &files(directory, ".redb")[0];
            let bytes = std::fs::read(index).expect("a file");
            std::fs::write(index, &bytes[..bytes.len() / 2]).expect("it is written");
        }),
    ];
    for (what, damage) in damage {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(answer(&kept(directory.path()), &prompt), 0);
        damage(directory.path());
        let engine = kept(directory.path());
        let mut notes = engine.notes().to_vec();
        assert!(answer(&engine, &prompt) < 1099, "{what}");
        notes.extend(engine.prefix_store().expect("a store").notes());
        assert!(notes.iter().any(|note| note.contains("dropped") || note.contains("lost")), "{what}: {notes:?}");
        drop(engine);
        // It is as good as new.
        let engine = kept(directory.path());
        assert_eq!((engine.notes().len(), answer(&engine, &prompt)), (0, 1099), "{what}: {:?}", engine.notes());
    }
}

#[test]
fn the_oldest_go_when_there_is_no_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let budget = 1 << 20;
    let first = ids(700, 0);
    for salt in 0..12 {
        answer(&keeping(directory.path(), budget), &ids(700, salt));
    }
    let bytes: u64 = files(directory.path(), ".dat").iter().map(|file| file.metadata().expect("a file").len()).sum();
    assert!(bytes <= budget, "{bytes}");
    let engine = keeping(directory.path(), budget);
    assert_eq!(engine.notes().len(), 0, "{:?}", engine.notes());
    assert_eq!(answer(&engine, &ids(700, 11)), 699);
    assert_eq!(answer(&engine, &first), 0);
}

#[test]
fn a_second_program_goes_without() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = kept(directory.path());
    let second = kept(directory.path());
    assert!(second.prefix_store().is_none());
    assert!(second.notes().iter().any(|note| note.contains("another cachalot")), "{:?}", second.notes());
    let prompt = ids(100, 0);
    answer(&second, &prompt);
    drop(first);
    assert_eq!(answer(&kept(directory.path()), &prompt), 0);
}

/// Not a test: a program that keeps states until it is killed, or until its files may not grow any more.
#[test]
#[ignore = "the tests below run it, as a process that they kill"]
fn keeps_until_it_is_ended() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let engine = kept(Path::new(&directory));
    for salt in 0..400 {
        generate(&mut Session::new(Arc::clone(&engine)), &ids(1200, salt), &greedy(1, Prefill::Exact));
        let notes = engine.prefix_store().expect("a store").notes();
        if !notes.is_empty() {
            println!("notes: {notes:?}");
            return;
        }
    }
}

fn child(directory: &Path, shell: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{shell} exec \"$0\" \"$@\"")).arg(std::env::current_exe().expect("a program"));
    command.args(["--ignored", "--exact", "--nocapture", "keeping::keeps_until_it_is_ended"]);
    command.env(CHILD, directory).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn a_program_that_is_killed_leaves_a_sound_store() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..4 {
        let mut running = child(directory.path(), "").spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(900 + 170 * round));
        running.kill().expect("it is killed");
        running.wait().expect("it ends");
        let engine = kept(directory.path());
        assert_eq!(engine.notes().len(), 0, "round {round}: {:?}", engine.notes());
        for salt in 0..3 {
            answer(&engine, &ids(1200, salt));
        }
        assert_eq!(engine.prefix_store().expect("a store").notes(), [""; 0]);
    }
    // Something had been kept each time that there was time for it.
    assert!(answer(&kept(directory.path()), &ids(1200, 0)) > 0);
}

#[test]
fn a_disk_that_takes_no_more_costs_no_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    // Files may have 2 MB and no more; what would be longer is an error instead of a signal.
    let output = child(directory.path(), "trap '' XFSZ; ulimit -f 4096;").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("could not be kept"), "{text}");
    let engine = kept(directory.path());
    assert_eq!(engine.notes().len(), 0, "{:?}", engine.notes());
    answer(&engine, &ids(1100, 0));
}
