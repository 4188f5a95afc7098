//! The fixed sets of questions: their prompts are the program's, and the model that ships can be asked.

use std::path::PathBuf;
use std::sync::Arc;

use cachalot_bench::{Question, abilities, prompt_of, questions};
use cachalot_engine::{Engine, EngineOptions};
use cachalot_storage::Directory;

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn nano() -> Arc<Engine> {
    let files = Arc::new(Directory::new(repository("models/nano")));
    let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
    Arc::new(Engine::open(files, &options, &mut |_| ()).unwrap())
}

fn sets() -> Vec<Question> {
    let files = std::fs::read_dir(repository("fixtures/abilities")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    files.iter().flat_map(|file| questions(file).unwrap()).collect()
}

#[test]
fn every_prompt_is_the_sets_id_by_id() {
    let (engine, questions) = (nano(), sets());
    assert!(questions.len() > 1500, "{}", questions.len());
    for question in &questions {
        prompt_of(engine.tokenizer(), question).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn questions_are_asked_and_judged() {
    let picked: Vec<Question> = sets().into_iter().step_by(97).collect();
    let mut asked = 0;
    let report = abilities(&nano(), &picked, true, &mut |done| asked = done).unwrap();
    let judged: usize = report.scores.values().map(|score| score.asked).sum();
    assert_eq!((asked, report.scores.is_empty()), (picked.len(), false));
    assert!(judged + report.skipped <= picked.len() && judged > picked.len() / 2, "{report}");
    assert!(report.scores.values().all(|score| score.right <= score.asked));
}
