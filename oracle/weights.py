"""Seeded weights, their FP8 and FP4 encodings, and sharded safetensors checkpoints in the released layout.

Every block scale is a power of two stored as E8M0, so decoding a weight is exact in bfloat16 and in float32: an engine
that reads the files holds exactly the weights the reference used.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FP8_MAX, FP4_MAX = 448.0, 6.0
FP4_LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4_MIDPOINTS = (FP4_LEVELS[1:] + FP4_LEVELS[:-1]) / 2
SMALLEST_SCALE = 2.0**-100
STRAY = 7

# First match wins. ("matrix", g) draws N(0, g / sqrt(fan_in)); ("normal", m, s) draws N(m, s); ("uniform", a, b) draws
# U(a, b). Nothing is zero, one, or the same everywhere. Projections back into the residual streams are kept below one,
# as training leaves them: rounding noise then stays noise instead of growing from layer to layer.
RULES = [
    (r"embed_tokens\.weight$", ("normal", 0.0, 1.0)),
    (r"engram\.embed\.weight$", ("normal", 0.0, 1.0)),
    (r"lm_head\.weight$", ("matrix", 2.0)),
    (r"(^|\.)\w*norm\d?\.weight$", ("uniform", 0.6, 1.4)),
    (r"\.[qk]_weight$", ("uniform", 0.6, 1.4)),
    (r"sinks_param\.weight$|\.sinks$", ("normal", 0.5, 1.0)),
    (r"(e_score_correction_bias|bias_vl)$", ("normal", 0.0, 0.15)),
    (r"_hc\.fn$|hc_head\.hc_fn$", ("matrix", 0.7)),
    (r"_hc\.scale$|hc_head\.hc_scale$", ("uniform", 0.5, 1.5)),
    (r"_hc\.base$|hc_head\.hc_base$", ("normal", 0.0, 0.6)),
    (r"ape_param\.weight$|position_bias$", ("normal", 0.0, 0.5)),
    (r"\.(gate|wgate|gate_proj)\.weight$", ("matrix", 1.5)),
    (r"experts\.gate_and_up_projs$", ("stacked", 1.3)),
    (r"experts\.down_projs$", ("stacked", 0.08)),
    (r"shared_experts\.down_proj\.weight$", ("matrix", 0.1)),
    (r"\.wq_b\.weight$", ("matrix", 1.4)),
    (r"\.wo_b\.weight$", ("matrix", 0.1)),
    (r"engram\.wkv\.weight$", ("matrix", 0.2)),
    (r"\.weight$", ("matrix", 1.0)),
]
BLOCK_SCALED = re.compile(r"experts|\.w(q_a|q_b|kv|o_a|o_b)\.weight$")


# ---------------------------------------------------------------- drawing


def random_weights(shapes: dict[str, torch.Size], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """One float32 tensor at a time for every name; the draw depends only on the seed and the sorted names."""
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(shapes):
        rule = next((rule for pattern, rule in RULES if re.search(pattern, name)), None)
        if rule is None:
            raise ValueError(f"no initialisation rule for {name}")
        value = _draw(shapes[name], rule, generator)
        yield name, _vary_blocks(value, generator) if BLOCK_SCALED.search(name) else value


def _draw(shape: torch.Size, rule: tuple, generator: torch.Generator) -> torch.Tensor:
    kind, *parameters = rule
    if kind == "uniform":
        low, high = parameters
        return torch.rand(shape, generator=generator) * (high - low) + low
    noise = torch.randn(shape, generator=generator)
    if kind == "normal":
        mean, deviation = parameters
        return mean + deviation * noise
    fan_in = shape[1] if kind == "stacked" else shape[-1]  # stacked: [experts, fan_in, fan_out]
    return noise * (parameters[0] / math.sqrt(fan_in))


def _vary_blocks(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Give each 32 x 32 block its own magnitude, so that a misplaced block scale changes the output."""
    rows, columns = value.shape[-2:]
    grid = torch.randn(*value.shape[:-2], -(-rows // 32), -(-columns // 32), generator=generator)
    gain = torch.exp2(0.5 * grid).repeat_interleave(32, -2).repeat_interleave(32, -1)[..., :rows, :columns]
    return value * gain / gain.square().mean().sqrt()


# ---------------------------------------------------------------- encoding


def encode_fp8(matrix: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 values [R, C] and E8M0 scales [R/rows, C/columns]."""
    scaled, scale = _scaled(matrix, rows, columns, FP8_MAX)
    return scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def encode_fp4(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed E2M1 int8 [R, C/2] (even column in the low nibble) and E8M0 scales [R, C/32]."""
    scaled, scale = _scaled(matrix, 1, 32, FP4_MAX)
    code = torch.bucketize(scaled.abs(), FP4_MIDPOINTS, out_int32=True) + 8 * (scaled < 0)
    packed = code[:, 0::2] | (code[:, 1::2] << 4)
    return packed.to(torch.uint8).view(torch.int8), scale


def _scaled(matrix: torch.Tensor, rows: int, columns: int, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix divided by its block scales, and the scales; blocks at the edges may be cut off."""
    height, width = matrix.shape
    padded = torch.nn.functional.pad(matrix.float(), (0, -width % columns, 0, -height % rows))
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    mantissa, exponent = torch.frexp((blocks.abs().amax(dim=(1, 3)) / limit).clamp_min(SMALLEST_SCALE))
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)  # the power of two at or above the value
    scale = torch.ldexp(torch.ones_like(mantissa), exponent)
    scaled = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:height, :width]
    return scaled, scale.to(torch.float8_e8m0fnu)


# ---------------------------------------------------------------- decoding


def decode(tensors: dict[str, torch.Tensor], block: int) -> dict[str, torch.Tensor]:
    """Float32 weights without scales; FP8 ones have a scale per ``block`` x ``block``. Ids stay as they are."""
    decoded = {}
    for name, value in tensors.items():
        scale = tensors.get(name.removesuffix(".weight") + ".scale")
        if name.endswith(".scale"):
            continue
        if scale is None:
            decoded[name] = value.float() if value.is_floating_point() else value
            continue
        rows, columns = (1, 32) if value.dtype == torch.int8 else (block, block)
        numbers = _fp4_numbers(value) if value.dtype == torch.int8 else value.float()
        grid = scale.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        decoded[name] = numbers * grid[: numbers.shape[0], : numbers.shape[1]]
    return decoded


def _fp4_numbers(packed: torch.Tensor) -> torch.Tensor:
    """E2M1 values [R, C] of packed bytes [R, C/2], even columns in the low nibbles."""
    codes = packed.view(torch.uint8)
    codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).long()
    return torch.where(codes >= 8, -1.0, 1.0) * FP4_LEVELS[codes % 8]


# ---------------------------------------------------------------- files


def write_checkpoint(tensors: dict[str, torch.Tensor], directory: Path, shards: int) -> None:
    """Split tensors (in name order) into about equal shards and write the weight index.

    Every ``STRAY``-th tensor goes to the next shard, so that some weights part from their scales.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    total = sum(sizes.values())
    groups: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    written = 0
    for number, name in enumerate(sorted(tensors)):
        shard = min(shards - 1, written * shards // total) + (number % STRAY == 0)
        groups[shard % shards][name] = tensors[name].contiguous()
        written += sizes[name]
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file_name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(group, directory / file_name, metadata={"format": "pt"})
        weight_map.update({name: file_name for name in group})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def read_layers(directory: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a checkpoint, one layer at a time, then those outside of the layers."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    layers: dict[str, list[str]] = {}
    for name in weight_map:
        layer = re.match(r"layers\.\d+\.", name)
        layers.setdefault(layer[0] if layer else "", []).append(name)
    for names in layers.values():
        yield _read(directory, names, weight_map)


def _read(directory: Path, names: Iterable[str], weight_map: dict[str, str]) -> dict[str, torch.Tensor]:
    tensors = {}
    for file_name in {weight_map[name] for name in names}:
        with safe_open(directory / file_name, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in names if weight_map[name] == file_name})
    return tensors


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
