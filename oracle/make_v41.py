"""Write a random DeepSeek V4.1 checkpoint in the released format, and what the reference computes from it.

    python make_v41.py specs/v41-pairs.json /tmp/v41-pairs

Text only: no vision tower, no draft. The float32 model and the bfloat16 model are never in memory together.
"""

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import torch
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.deepseek_v41.config import DeepseekV41Config, DeepseekV41TextConfig
from nemo_automodel.components.models.deepseek_v41.engram import DeepseekV41NgramHash, _compressed_token_map
from nemo_automodel.components.models.deepseek_v41.model import DeepseekV41ForCausalLM
from transformers import PreTrainedTokenizerFast

import fixture
import tiny_tokenizer
from arithmetic import VARIANTS
from capture import Recorder, hooks, record_input, record_output
from weights import encode_fp4, encode_fp8, random_weights, read_layers, write_checkpoint, write_json

PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}
STORED_AS_FLOAT32 = re.compile(r"hc_(attn|ffn)_|attn_sink$|gate\.bias(_vl)?$")


# ---------------------------------------------------------------- configuration


def released_config(spec: dict, tokenizer: PreTrainedTokenizerFast) -> dict:
    """The nested config.json of a released checkpoint, with the tokenizer-dependent fields filled in."""
    text = {"num_nextn_predict_layers": 0, **spec["text_config"]}
    text["vocab_size"] = len(tokenizer)
    text["dspark_noise_token_id"] = tokenizer.convert_tokens_to_ids(tiny_tokenizer.NOISE)
    text["engram_compressed_vocab_size"] = _compressed_token_map(tokenizer)[1]
    text["engram_num_embeddings"] = engram_rows(text, tokenizer)
    fields = inspect.signature(DeepseekV41TextConfig.__init__).parameters.values()
    defaults = {field.name: field.default for field in fields if field.default is not inspect.Parameter.empty}
    return {
        "architectures": ["DeepseekV41ForCausalLM"],
        "model_type": DeepseekV41Config.model_type,
        "dtype": "bfloat16",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        "image_token_id": tokenizer.convert_tokens_to_ids(tiny_tokenizer.IMAGE),
        "text_config": {"model_type": DeepseekV41TextConfig.model_type, **defaults, **text},
        "quantization_config": {
            "activation_scheme": "dynamic",
            "expert_dtype": "fp4",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [32, 32],
        },
    }


def engram_rows(text: dict, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Table sizes: the sum of the hash-bucket primes of each Engram layer, as in the release."""
    unlimited = [1 << 40] * len(text["engram_layer_ids"])
    sized = DeepseekV41TextConfig(**{**text, "engram_num_embeddings": unlimited})
    return [sum(primes) for primes in DeepseekV41NgramHash(sized, tokenizer).primes.tolist()]


# ---------------------------------------------------------------- models


def build(config: dict, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> DeepseekV41ForCausalLM:
    """Construct the reference; its parameters are still arbitrary."""
    values = copy.deepcopy({key: value for key, value in config.items() if key != "quantization_config"})
    values["dtype"] = values["text_config"]["dtype"] = str(dtype).removeprefix("torch.")
    backend = BackendConfig(
        attn="eager",
        linear="torch",
        rms_norm="torch_fp32",
        rope_fusion=False,
        gate_precision="float32",
        experts="torch",
        dispatcher="torch",
        enable_hf_state_dict_adapter=True,
    )
    built = DeepseekV41Config(**values, vision_config={"num_hidden_layers": 0})
    return DeepseekV41ForCausalLM(built, backend=backend, tokenizer=tokenizer).eval()


def load(
    config: dict, tokenizer: PreTrainedTokenizerFast, directory: Path, dtype: torch.dtype
) -> DeepseekV41ForCausalLM:
    """Read a written checkpoint through the reference's own state-dict adapter, one layer at a time."""
    reference = build(config, tokenizer, dtype)
    missing = set(reference.state_dict())
    for tensors in read_layers(directory):
        state = reference.state_dict_adapter.from_hf(tensors)
        if unknown := reference.load_state_dict(state, strict=False).unexpected_keys:
            raise ValueError(f"the reference does not know {unknown}")
        missing -= set(state)
    if missing:
        raise ValueError(f"the checkpoint lacks {sorted(missing)}")
    return reference


def write_model(spec: dict, config: dict, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Draw the weights and write config.json and the quantised shards.

    The reference's adapter decides each released name, format and scale shape; weights are drawn and encoded one
    parameter at a time.
    """
    with torch.device("meta"):
        reference = build(config, tokenizer, torch.bfloat16)
    adapter, parameters = reference.state_dict_adapter, reference.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for parameter, drawn in random_weights({name: value.shape for name, value in parameters.items()}, spec["seed"]):
        layout = adapter.to_hf({parameter: parameters[parameter]}, quantization=True, for_checkpoint_load=True)
        for name, value in adapter.to_hf({parameter: drawn}).items():
            target, scale_name = layout[name], name.removesuffix(".weight") + ".scale"
            if target.dtype == torch.int8:
                tensors[name], tensors[scale_name] = encode_fp4(value)
            elif target.dtype == torch.float8_e4m3fn:
                rowwise = layout[scale_name].shape[0] == value.shape[0]
                tensors[name], tensors[scale_name] = encode_fp8(value, 1 if rowwise else 32, 32)
            else:
                tensors[name] = value.to(torch.float32 if STORED_AS_FLOAT32.search(name) else torch.bfloat16)
        for name, target in layout.items():
            if tensors[name].shape != target.shape:
                raise ValueError(f"{name} does not have the released shape {tuple(target.shape)}")
    write_checkpoint(tensors, directory, spec["shards"])
    write_json(directory / "config.json", config)


# ---------------------------------------------------------------- forward passes


def selection_hooks(reference: DeepseekV41ForCausalLM, recorder: Recorder) -> list:
    """Discrete choices: indexer top-k, candidate masks, experts and their weights, Engram rows."""
    text = reference.config.text_config
    handles = []
    if reference.model.engram_hash is not None:
        handles.append(record_output(reference.model.engram_hash, recorder, "engram.rows"))
    for number, layer in reference.model.layers.items():
        index = int(number)
        if index in text.index_source_layer_ids:
            name = f"layer{index:02d}.topk"
            handles.append(record_output(layer.attn, recorder, name, lambda out: out.state.topk_indices))
        if index == text.candidate_source_layer_id:
            name = f"layer{index:02d}.candidates"
            handles.append(record_output(layer.attn, recorder, name, lambda out: out.state.candidates))
        for name, output in (("experts", 1), ("expert_weights", 0)):
            name = f"layer{index:02d}.{name}"
            # The gate sees its tokens in one row: give it back the batch axis of everything else.
            select: Callable = lambda out, output=output: out[output].unsqueeze(0)
            handles.append(record_output(layer.ffn.gate, recorder, name, select))
    return handles


def trace_hooks(reference: DeepseekV41ForCausalLM, recorder: Recorder) -> list:
    """Everything that selection_hooks records, plus the values between the sublayers."""
    text = reference.config.text_config
    handles = selection_hooks(reference, recorder)
    for number, layer in reference.model.layers.items():
        index, prefix = int(number), f"layer{int(number):02d}"
        handles += [
            record_input(layer, recorder, f"{prefix}.streams_in", 0),
            record_input(layer, recorder, f"{prefix}.pre_mix_in", 1),
            record_output(layer.attn, recorder, f"{prefix}.attn_out", lambda out: out.hidden_states),
            record_output(layer.ffn, recorder, f"{prefix}.ffn_out"),
        ]
        if index in text.kv_source_layer_ids:
            handles += [
                record_output(layer.attn, recorder, f"{prefix}.compressed_kv", lambda out: out.state.compressed_kv),
                record_output(layer.attn, recorder, f"{prefix}.index_keys", lambda out: out.state.index_keys),
            ]
        if index == text.num_hidden_layers - 1:
            handles.append(record_output(layer, recorder, "final.streams", lambda out: out[0]))
    handles.append(record_output(reference.model.norm, recorder, "final.normed"))
    return handles


HOOKS = {"logits": lambda reference, recorder: [], "selection": selection_hooks, "trace": trace_hooks}


@torch.no_grad()
def run(reference: DeepseekV41ForCausalLM, ids: list[int], detail: str = "logits") -> Recorder:
    """One full forward pass; returns the logits [positions, vocab] and what ``detail`` asks for."""
    recorder = Recorder()
    with hooks(*HOOKS[detail](reference, recorder)):
        logits = reference(input_ids=torch.tensor([ids])).logits[0].float()
    recorder.put("logits", logits)
    return recorder


# ---------------------------------------------------------------- fixtures


def make(spec: dict, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write one fixture."""
    config = released_config(spec, tokenizer)
    write_model(spec, config, tokenizer, directory)
    expected = fixture.Expected(spec, tokenizer, run, VARIANTS, rounded_caches=True)
    for precision, step in (("f32", expected.float32), ("bf16", expected.bfloat16)):
        reference = load(config, tokenizer, directory, PRECISIONS[precision])
        step(reference)
        del reference
    fixture.write_expected(expected.tensors, expected.report, directory)


if __name__ == "__main__":
    fixture.main(__doc__, make)
