//! What is said beforehand: what fits, how fast it will be, and what is not possible

use crate::support::{cachalot, copy, fixture, repository};

#[test]
fn the_first_prompt_after_a_start_is_forecast_too() {
    let nano = repository("models/nano").display().to_string();
    // Everything fits, and still the first prompt has to read it.
    let plan = cachalot(&["plan", &nano, "--json"]).json();
    assert_eq!(plan["memory"]["experts_fit"], true, "{plan}");
    assert!(plan["disk"]["bytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{plan}");
    for prompt in plan["forecast"]["prompts"].as_array().expect("prompts") {
        let slowest = |name: &str| prompt[name][1].as_f64().expect("a number");
        assert!(slowest("cold_seconds") >= slowest("seconds"), "{prompt}");
    }
    let plan = cachalot(&["plan", &nano, "--disk-rate", "0.0001"]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    for part in
        ["as given; not needed once the experts have been read", "the first after a start: ", "bound by the disk"]
    {
        assert!(plan.out.contains(part), "no {part:?} in {}", plan.out);
    }
}

/// A folder on another disk than those of the system's temporary files, where there is one.
fn elsewhere() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

#[test]
fn a_model_may_lie_in_several_directories() {
    let (folder, other) = (copy("fixtures/v41-tiny"), elsewhere());
    let shard = "model-00003-of-00003.safetensors";
    std::fs::copy(folder.path().join(shard), other.path().join(shard)).expect("copied");
    std::fs::remove_file(folder.path().join(shard)).expect("removed");
    let [path, also] = [&folder, &other].map(|folder| folder.path().display().to_string());

    let inspection = cachalot(&["inspect", &path]);
    assert!(inspection.out.contains(&format!("not there: {shard}")), "{inspection:?}");
    let inspection = cachalot(&["inspect", &path, "--also", &also, "--json"]).json();
    assert!(inspection["shards"].as_array().is_some_and(|shards| shards.iter().all(|shard| shard["complete"] == true)));
    cachalot(&["inspect", &path, "--also", "/nowhere"]).refused(1, &["/nowhere"]);

    cachalot(&["plan", &path]).refused(1, &[&format!("{shard} is not there: it holds ")]);
    let plan = cachalot(&["plan", &path, "--also", &also, "--json"]).json();
    let tried = plan["disk"]["tried"].as_array().expect("ways");
    let chosen = tried.iter().find(|tried| tried["method"] == plan["disk"]["method"]).expect("one was chosen");
    let devices = chosen["devices"].as_array().expect("disks");
    let shares: f64 = devices.iter().filter_map(|device| device["share"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{chosen}");
    // The whole is no faster than any disk is for its share.
    let rate = plan["disk"]["bytes_per_second"].as_f64().expect("a rate");
    for device in devices {
        let [share, of_disk] = ["share", "bytes_per_second"].map(|name| device[name].as_f64().expect("a number"));
        assert!(rate <= of_disk / share * 1.000_001, "{chosen}");
    }

    let base = ["--no-think", "--temperature", "0", "--max-tokens", "6", "Hello", "--model"];
    let whole = cachalot(&[&["run"], &base[..], &[&fixture("v41-tiny")]].concat());
    let spread = cachalot(&[&["run"], &base[..], &[&path, "--also", &also]].concat());
    assert_eq!((spread.code, &spread.out), (Some(0), &whole.out), "{spread:?}");
}

#[test]
fn no_longer_context_than_the_models_is_promised() {
    let model = fixture("v41-tiny");
    let limit = "the model goes up to 4096: --context 4096 or less";
    cachalot(&["plan", &model, "--context", "2M"]).refused(1, &[limit]);
    cachalot(&["run", "--model", &model, "--context", "4097", "Hello"]).refused(1, &[limit]);
    let bench = |context: &[&str], depth| {
        cachalot(&[&["bench", "decode", "--model", &model, "--depth", depth], context].concat())
    };
    let longer = bench(&[], "5000");
    longer.refused(1, &["lower --depth, --tokens or --windows"]);
    assert!(!longer.err.contains("--context"), "{longer:?}");
    bench(&["--context", "100"], "200").refused(1, &["lower --depth, --tokens or --windows, or raise --context"]);
}
