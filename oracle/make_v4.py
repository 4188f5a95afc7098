"""Write a random DeepSeek V4 checkpoint in the released format, and what transformers computes from it.

    python make_v4.py specs/v4-pro-like.json /tmp/v4-pro-like

Text only: no draft block. The float32 model and the bfloat16 model are never in memory together.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.deepseek_v4.config import DeepseekV4Config
from nemo_automodel.components.models.deepseek_v4.model import DeepseekV4ForCausalLM as Layout
from safetensors.torch import save_file
from transformers import DeepseekV4ForCausalLM, PreTrainedTokenizerFast

import fixture
from capture import Recorder, hooks, record_input, record_output
from weights import decode, encode_fp4, encode_fp8, random_weights, read_layers, write_checkpoint, write_json

PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}
FP8_BLOCK = 128
# These are bfloat16 on disk, whatever they compute in.
STORED_AS_BFLOAT16 = re.compile(r"^head\.weight$|\.(wkv|wgate|gate|weights_proj)\.weight$")


# ---------------------------------------------------------------- configuration and checkpoint


def released_config(spec: dict, tokenizer: PreTrainedTokenizerFast) -> dict:
    """The flat config.json of a released checkpoint."""
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16",
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "expert_dtype": "fp4",
        "num_nextn_predict_layers": 0,
        **spec["config"],
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        },
    }


def unquantised(config: dict) -> dict:
    return {key: value for key, value in config.items() if key not in ("quantization_config", "expert_dtype")}


def write_model(spec: dict, config: dict, directory: Path) -> None:
    """Draw the weights and write config.json and the quantised shards.

    nemo's adapter decides each released name, format and scale shape; ``"expert_dtype": "fp8"`` in the spec stores the
    experts as the base models do.
    """
    backend = BackendConfig(
        attn="eager",
        linear="torch",
        rms_norm="torch_fp32",
        rope_fusion=False,
        experts="torch",
        dispatcher="torch",
        enable_hf_state_dict_adapter=True,
    )
    with torch.device("meta"):
        model = Layout(DeepseekV4Config(**{**unquantised(config), "torch_dtype": "bfloat16"}), backend=backend)
    adapter, parameters = model.state_dict_adapter, model.state_dict()
    tables = {name: value.shape for name, value in parameters.items() if name.endswith(".tid2eid")}
    shapes = {name: value.shape for name, value in parameters.items() if name not in tables}
    native = dict(random_weights(shapes, spec["seed"]))
    generator = torch.Generator().manual_seed(spec["seed"])
    for name, (vocabulary, chosen) in sorted(tables.items()):
        draw = torch.rand(vocabulary, config["n_routed_experts"], generator=generator)
        native[name] = draw.argsort(dim=-1)[:, :chosen]
    layout = adapter.to_hf(parameters, quantization=True)
    tensors = {}
    for name, value in adapter.to_hf(native).items():
        target, scale_name = layout[name], name.removesuffix(".weight") + ".scale"
        if target.dtype == torch.int8 and config["expert_dtype"] == "fp4":
            tensors[name], tensors[scale_name] = encode_fp4(value)
        elif target.dtype in (torch.int8, torch.float8_e4m3fn):
            tensors[name], tensors[scale_name] = encode_fp8(value, FP8_BLOCK, FP8_BLOCK)
        elif name.endswith(".tid2eid"):
            tensors[name] = value
        else:
            tensors[name] = value.to(torch.bfloat16 if STORED_AS_BFLOAT16.search(name) else target.dtype)
    if set(tensors) != set(layout):
        raise ValueError("the encoded tensors and the released layout name different tensors")
    write_checkpoint(tensors, directory, spec["shards"])
    write_json(directory / "config.json", config)


def load(config: dict, directory: Path, dtype: torch.dtype) -> DeepseekV4ForCausalLM:
    """Decode a written checkpoint and let transformers map the released names itself."""
    with tempfile.TemporaryDirectory() as scratch:
        decoded = {}
        for tensors in read_layers(directory):
            decoded.update(decode(tensors, FP8_BLOCK))
        contiguous = {name: value.contiguous() for name, value in decoded.items()}
        save_file(contiguous, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        write_json(Path(scratch) / "config.json", unquantised(config))
        model, info = DeepseekV4ForCausalLM.from_pretrained(
            scratch, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    if any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")):
        raise ValueError(f"transformers did not accept the released names: {info}")
    # The "eager" experts loop is the plain definition; the other backends are rewrites of it for GPUs.
    model.set_experts_implementation("eager")
    return model.eval()


# ---------------------------------------------------------------- forward passes


def selection_hooks(model: DeepseekV4ForCausalLM, recorder: Recorder) -> list:
    """Discrete choices (indexer top-k, experts and their weights) and the compressed entries."""
    handles = []
    for index, layer in enumerate(model.model.layers):
        prefix = f"layer{index:02d}"
        if hasattr(layer.self_attn.compressor, "indexer"):
            handles.append(record_output(layer.self_attn.compressor.indexer, recorder, f"{prefix}.topk"))
        if layer.self_attn.compressor is not None:
            name = f"{prefix}.compressed_kv"
            handles.append(record_output(layer.self_attn.compressor, recorder, name, lambda out: out[0][:, 0]))
        for name, output in (("experts", 2), ("expert_weights", 1)):
            name = f"{prefix}.{name}"
            select: Callable = lambda out, output=output: out[output]
            handles.append(record_output(layer.mlp.gate, recorder, name, select))
    return handles


def trace_hooks(model: DeepseekV4ForCausalLM, recorder: Recorder) -> list:
    """Everything that selection_hooks records, plus the values between the sublayers."""
    handles = selection_hooks(model, recorder)
    for index, layer in enumerate(model.model.layers):
        prefix = f"layer{index:02d}"
        handles += [
            record_input(layer, recorder, f"{prefix}.streams_in"),
            record_output(layer.self_attn, recorder, f"{prefix}.attn_out", lambda out: out[0]),
            record_output(layer.mlp, recorder, f"{prefix}.ffn_out"),
        ]
    handles += [
        record_output(layer, recorder, "final.streams"),
        record_output(model.model.norm, recorder, "final.normed"),
    ]
    return handles


HOOKS = {"logits": lambda model, recorder: [], "selection": selection_hooks, "trace": trace_hooks}


@torch.no_grad()
def run(model: DeepseekV4ForCausalLM, ids: list[int], detail: str = "logits") -> Recorder:
    """One full forward pass; returns the logits [positions, vocab] and what ``detail`` asks for."""
    recorder = Recorder()
    with hooks(*HOOKS[detail](model, recorder)):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    recorder.put("logits", logits[0].float())
    return recorder


# ---------------------------------------------------------------- fixtures


def make(spec: dict, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write one fixture."""
    config = released_config(spec, tokenizer)
    write_model(spec, config, directory)
    expected = fixture.Expected(spec, tokenizer, run, {}, rounded_caches=False)
    for precision, step in (("f32", expected.float32), ("bf16", expected.bfloat16)):
        model = load(config, directory, PRECISIONS[precision])
        step(model)
        del model
    fixture.write_expected(expected.tensors, expected.report, directory)


if __name__ == "__main__":
    fixture.main(__doc__, make)
