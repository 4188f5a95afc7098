"""What fixtures of both generations have in common: expected outputs, tolerances, reports, the command line."""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

import tiny_tokenizer
from arithmetic import OtherSummation
from capture import Recorder, compact
from compare import drift, logit_distance
from weights import write_json

ALL_POSITIONS_UP_TO = 64
SPREAD_POSITIONS = 12
LAST_POSITIONS = 4
SHORT_DRAWS, LONG_DRAWS = 32, 12
SMOOTH_UP_TO = 16
TOKENIZER_CASES = [
    "Hello, world! The year is 2026 and 12345678 people\n\n  def f(x):\n\treturn x**2",
    "naïve Straße CAFÉ ﬁne １２３ 中文数据 データ 🙂 e\u0301",
    "<｜User｜>What is 2+2?<｜Assistant｜></think>4<｜end▁of▁sentence｜>",
    "   leading spaces\r\n\r\nand trailing   ",
]


def logit_positions(length: int) -> list[int]:
    """Positions whose logits are stored: all of a short prompt, some and the last of a long one."""
    if length <= ALL_POSITIONS_UP_TO:
        return list(range(length))
    step = length // SPREAD_POSITIONS
    return sorted({*range(step - 1, length, step), *range(length - LAST_POSITIONS, length)})


def is_smooth(length: int, rounded_caches: bool) -> bool:
    """Whether nothing but top-k and routing can make a prompt of this length step."""
    return not rounded_caches or length <= SMOOTH_UP_TO


def noise_floor(
    logits: Callable[[], torch.Tensor], expected: torch.Tensor, draws: int | None, rounded_caches: bool
) -> dict[str, float]:
    """Worst distance from ``expected`` over ``draws`` shuffled orders of summation and one in float64.

    Refuses a prompt in which a discrete choice is nearly a tie, but for long ones where caches are rounded.
    """
    length = len(expected)
    smooth = is_smooth(length, rounded_caches)
    draws = draws or (LONG_DRAWS if length > ALL_POSITIONS_UP_TO else SHORT_DRAWS)
    distances = []
    for seed in (None, *range(draws)):
        with OtherSummation(seed):
            distances.append(logit_distance(logits(), expected))
    worst = {name: max(distance[name] for distance in distances) for name in distances[0]}
    worst["top1_agreement"] = min(distance["top1_agreement"] for distance in distances)
    limit = 5e-4 if smooth else 1e-2 if length <= ALL_POSITIONS_UP_TO else float("inf")
    if 5 * worst["max_abs"] > limit:
        raise ValueError(f"a choice in this prompt is nearly a tie (noise {worst}): take another topic or seed")
    return worst


def tolerances(prompt: dict, recorded: Iterable[str], rounded_caches: bool) -> dict[str, dict]:
    """What check.py allows, from the measured distances.

    Where caches are rounded, an engine that is right may cross a rounding step that the noise draws did not: from
    ``SMOOTH_UP_TO`` tokens on the limits leave room for that.
    """
    noise, bf16 = prompt["f32_noise_floor"], prompt["bf16_against_f32"]
    smooth = is_smooth(prompt["length"], rounded_caches)
    short = prompt["length"] <= ALL_POSITIONS_UP_TO
    if smooth:
        logits = {"max_abs": max(2e-5, 5 * noise["max_abs"])}
    elif short:
        logits = {"max_abs_p50": max(2e-4, 5 * noise["max_abs_p50"]), "max_abs": max(2e-3, 5 * noise["max_abs"])}
    else:
        logits = {"max_abs_p50": bf16["max_abs_p50"] / 5, "mean_kl": bf16["mean_kl"] / 5, "max_abs": bf16["max_abs"]}
    quantities = {name.rsplit(".", 1)[-1] for name in recorded}
    limits = {"logits": logits}
    if "experts" in quantities:
        limits["experts"] = {"rows_equal": 1.0 if smooth else 0.995}
        limits["expert_weights"] = {"max_abs": 5e-6} if smooth else {"max_abs_p90": 1e-5 if short else 2e-4}
    if "rows" in quantities:
        limits["engram_rows"] = {"rows_equal": 1.0}
    if "topk" in quantities:
        limits["index_selection"] = {"rows_equal": 1.0 if smooth else 0.98}
    if "streams_in" in quantities:
        limits["streams"] = {"relative_l2": 2e-6 if smooth else 2e-4}
    for limit in limits.values():
        limit.update({name: float(f"{value:.3g}") for name, value in limit.items()})
    return {
        "float32": limits,
        "bfloat16": {"logits": {name: float(f"{2 * bf16[name]:.3g}") for name in ("mean_kl", "max_abs")}},
    }


def greedy(next_logits: Callable[[list[int]], torch.Tensor], ids: list[int], count: int) -> dict[str, list]:
    """Greedy continuation by repeated full forward passes, with the lead of the best token at each step."""
    tokens: list[int] = []
    margins = []
    for _ in range(count):
        best = next_logits(ids + tokens).topk(2)
        tokens.append(best.indices[0].item())
        margins.append(round((best.values[0] - best.values[1]).item(), 4))
    return {"tokens": tokens, "margins": margins}


def new_report(spec: dict, tokenizer: PreTrainedTokenizerFast) -> dict:
    """The part of expected.json that does not depend on the model."""
    packages = ("nemo_automodel", "transformers", "torch", "tokenizers")
    cases = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in TOKENIZER_CASES]
    return {
        "reference": {name: version(name) for name in packages},
        "spec": spec,
        "tokenizer": cases,
        "prompts": {},
    }


def write_expected(tensors: dict[str, torch.Tensor], report: dict, directory: Path) -> None:
    """Write expected.safetensors and expected.json, refusing values that are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    save_file(ordered, directory / "expected.safetensors")
    write_json(directory / "expected.json", report)


class Expected:
    """Fills expected.safetensors and expected.json, one precision after the other.

    ``self.run(reference, ids, detail)`` makes one forward pass; ``variants`` are contexts that change its arithmetic;
    ``rounded_caches`` says whether the reference rounds what it keeps of earlier tokens.
    """

    def __init__(
        self, spec: dict, tokenizer: PreTrainedTokenizerFast, run: Callable, variants: dict, rounded_caches: bool
    ) -> None:
        self.spec, self.run, self.variants, self.rounded_caches = spec, run, variants, rounded_caches
        self.report = new_report(spec, tokenizer)
        self.tensors: dict[str, torch.Tensor] = {}
        self.ids = {
            name: tiny_tokenizer.prompt_ids(tokenizer, prompt["length"], prompt["topic"])
            for name, prompt in spec["prompts"].items()
        }
        self.texts = {name: tokenizer.decode(ids) for name, ids in self.ids.items()}
        self.recorded: dict[str, Recorder] = {}
        self.logits: dict[str, torch.Tensor] = {}

    def float32(self, reference: nn.Module) -> None:
        """The values to match, the variants, and what other orders of summation do."""
        for name, ids in self.ids.items():
            recorder = self.run(reference, ids, self.spec["prompts"][name].get("detail", "logits"))
            self.logits[name] = expected = recorder.pop("logits")
            self.recorded[name] = recorder
            self.tensors[f"{name}.input_ids"] = torch.tensor(ids, dtype=torch.int32)
            self.tensors.update({f"{name}.f32.{key}": compact(value) for key, value in recorder.items()})
            self.report["prompts"][name] = {
                "length": len(ids),
                "logit_positions": logit_positions(len(ids)),
                "f32_noise_floor": noise_floor(
                    lambda ids=ids: self.run(reference, ids)["logits"], expected, self.spec.get("noise_draws"), self.rounded_caches
                ),
            }
            self.store(name, "f32", expected)
            for variant, arithmetic in self.variants.items():
                with arithmetic(reference):
                    self.store(name, variant, self.run(reference, ids)["logits"])
            print(f"{name}: noise {self.report['prompts'][name]['f32_noise_floor']}", flush=True)
        self.continuation("f32", reference)

    def bfloat16(self, reference: nn.Module) -> None:
        """How far rounding alone leads away, and the tolerances that follow."""
        for name, ids in self.ids.items():
            f32, prompt = self.recorded[name], self.report["prompts"][name]
            recorder = self.run(reference, ids, self.spec["prompts"][name].get("detail", "logits"))
            self.store(name, "bf16", recorder.pop("logits"))
            prompt["tolerances"] = tolerances(prompt, f32, self.rounded_caches)
            if f32:
                prompt["trace_bf16_against_f32"] = drift(recorder, f32)
            prompt["text"] = self.texts[name]
        self.continuation("bf16", reference)

    def store(self, name: str, path: str, logits: torch.Tensor) -> None:
        prompt = self.report["prompts"][name]
        self.tensors[f"{name}.{path}.logits"] = logits[prompt["logit_positions"]]
        if path != "f32":
            prompt[f"{path}_against_f32"] = logit_distance(logits, self.logits[name])

    def continuation(self, path: str, reference: nn.Module) -> None:
        if wanted := self.spec.get("greedy"):
            report = self.report.setdefault("greedy", {"prompt": wanted["prompt"]})
            following: Callable = lambda ids: self.run(reference, ids)["logits"][-1]
            report[path] = greedy(following, self.ids[wanted["prompt"]], wanted["tokens"])


def main(description: str, make: Callable[[dict, PreTrainedTokenizerFast, Path], None]) -> None:
    """Parse SPEC and DIRECTORY, write the tokenizer, and call ``make(spec, tokenizer, directory)``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="JSON description of the model and its prompts")
    parser.add_argument("directory", type=Path, help="directory to write the checkpoint and expected outputs to")
    parser.add_argument("--threads", type=int, default=1, help="small matrices gain nothing from more than one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec, directory = json.loads(arguments.spec.read_text()), arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    make(spec, tiny_tokenizer.write_tokenizer(tiny_tokenizer.train_tokenizer(**spec["tokenizer"]), directory), directory)
    for path in directory.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in directory.iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    minutes = (time.monotonic() - started) / 60
    print(f"{directory}: {size / 1e6:.1f} MB in {minutes:.1f} minutes, at most {peak / 1e6:.1f} GB of memory")
