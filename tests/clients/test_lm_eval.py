"""lm-evaluation-harness on two tiny tasks of its `local-completions` model; the prompts are token ids and texts."""

import json
from pathlib import Path

import pytest
from conftest import KEY, ROOT

TASKS = Path(__file__).with_name("lm_eval")


@pytest.fixture
def evaluate(client, nano, tmp_path):
    """evaluate(task, **model arguments) -> the harness's results for it."""

    def run(task, **arguments):
        arguments = {"model": "cachalot-nano", "base_url": f"{nano.url}/v1/completions", "max_retries": 1, **arguments}
        (client.folder / "capitals.jsonl").write_bytes((TASKS / "capitals.jsonl").read_bytes())
        client(
            ["lm_eval", "run", "--model", "local-completions", "--tasks", task, "--include_path", TASKS,
             "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
             "--batch_size", "3", "--output_path", tmp_path / "results", "--log_samples"],
            OPENAI_API_KEY=KEY, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1",
        )  # fmt: skip
        (results,) = (tmp_path / "results").rglob("results_*.json")
        (samples,) = (tmp_path / "results").rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in samples.read_text().splitlines()]
        return json.loads(results.read_text())["results"][task], samples

    return run


@pytest.fixture
def tokenizer(tmp_path):
    """The shipped model's tokenizer as a folder that Transformers reads."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((ROOT / "models/nano/tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<｜end▁of▁sentence｜>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_generation(evaluate):
    results, samples = evaluate("tiny_capitals", tokenizer_backend="none", num_concurrent=2)
    assert results["sample_len"] == len(samples) == 6
    assert all(sample["resps"][0][0].strip() for sample in samples), "every prompt was answered"
    assert all("\n" not in sample["resps"][0][0] for sample in samples), "and the answers end where the task says"


def test_generation_from_ids(evaluate, tokenizer):
    results, samples = evaluate("tiny_capitals", tokenizer=tokenizer, tokenizer_backend="huggingface")
    assert results["sample_len"] == len(samples) == 6
    assert all(sample["resps"][0][0].strip() for sample in samples)


def test_log_likelihood(evaluate, tokenizer):
    results, samples = evaluate("tiny_choices", tokenizer=tokenizer, tokenizer_backend="huggingface")
    assert len(samples) == 6 and 0 <= results["acc,none"] <= 1
    assert all(float(value) < 0 for sample in samples for ((value, _),) in sample["resps"])
