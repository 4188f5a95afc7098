"""What goes into expected.json: noise floors, tolerances, greedy continuations, tokenizer cases."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from arithmetic import OtherSummation
from compare import logit_distance
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


def noise_floor(logits: Callable[[], torch.Tensor], expected: torch.Tensor, draws: int | None) -> dict[str, float]:
    """Worst distance from ``expected`` over ``draws`` shuffled orders of summation and one in float64.

    Refuses a prompt of up to ``ALL_POSITIONS_UP_TO`` tokens in which a discrete choice is nearly a tie.
    """
    length = len(expected)
    draws = draws or (LONG_DRAWS if length > ALL_POSITIONS_UP_TO else SHORT_DRAWS)
    distances = []
    for seed in (None, *range(draws)):
        with OtherSummation(seed):
            distances.append(logit_distance(logits(), expected))
    worst = {name: max(distance[name] for distance in distances) for name in distances[0]}
    worst["top1_agreement"] = min(distance["top1_agreement"] for distance in distances)
    limit = float("inf") if length > ALL_POSITIONS_UP_TO else 5e-4 if length <= SMOOTH_UP_TO else 1e-2
    if 5 * worst["max_abs"] > limit:
        raise ValueError(f"a choice in this prompt is nearly a tie (noise {worst}): take another topic or seed")
    return worst


def tolerances(prompt: dict, recorded: Iterable[str]) -> dict[str, dict]:
    """What check.py allows, from the measured distances.

    Caches are rounded, so an engine that is right may cross a rounding step that the noise draws did not: from
    ``SMOOTH_UP_TO`` tokens on the limits leave room for that.
    """
    noise, bf16 = prompt["f32_noise_floor"], prompt["bf16_against_f32"]
    smooth = prompt["length"] <= SMOOTH_UP_TO
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
