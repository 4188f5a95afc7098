"""The reference behind the engine's command line, to try check.py on a fixture or to record further prompts.

    python check.py FIXTURE --engine 'python reference_engine.py --model {model} --ids {ids} --out {out} --shuffle 100'
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

import make_v41
import tiny_tokenizer
from arithmetic import VARIANTS, OtherSummation
from capture import Recorder


def engine_output(recorder: Recorder, topk: int) -> dict[str, np.ndarray]:
    """What `cachalot forward --streams` would write, from what a traced run of the reference recorded."""
    values = {name: tensor.numpy() for name, tensor in recorder.items()}

    def layers(quantity: str) -> list[np.ndarray]:
        return [values[name][0] for name in sorted(values) if name.endswith(f".{quantity}")]

    experts, weights = np.stack(layers("experts")), np.stack(layers("expert_weights"))
    order = np.argsort(-weights, -1)
    selections = [np.sort(chosen, -1) for chosen in layers("topk")]
    output = {
        "logits": values["logits"],
        "experts": np.take_along_axis(experts, order, -1).astype(np.int32),
        "expert_weights": np.take_along_axis(weights, order, -1),
        "index_selection": np.stack([padded(chosen, topk) for chosen in selections]).astype(np.int32),
        "streams": np.stack([*layers("streams_in"), values["final.streams"][0]]),
    }
    if "engram.rows" in values:
        output["engram_rows"] = values["engram.rows"][0].swapaxes(0, 1).astype(np.int64)
    return {name: np.ascontiguousarray(value) for name, value in output.items()}


def padded(selection: np.ndarray, width: int) -> np.ndarray:
    """Sorted rows, made ``width`` wide with -1."""
    return np.pad(selection, ((0, 0), (0, width - selection.shape[-1])), constant_values=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True, help="a JSON list of token ids")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=make_v41.PRECISIONS, default="f32")
    parser.add_argument("--variant", choices=VARIANTS, help="another rounding of activations or caches")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="take the float32 sums in another order")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = json.loads((arguments.model / "config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.model / "tokenizer.json"),
        bos_token=tiny_tokenizer.BOS,
        eos_token=tiny_tokenizer.EOS,
        pad_token=tiny_tokenizer.PAD,
    )
    reference = make_v41.load(config, tokenizer, arguments.model, make_v41.PRECISIONS[arguments.precision])
    rounding = VARIANTS[arguments.variant](reference) if arguments.variant else nullcontext()
    order = nullcontext() if arguments.shuffle is None else OtherSummation(arguments.shuffle)
    with rounding, order:
        recorder = make_v41.run(reference, json.loads(arguments.ids.read_text()), "trace")
    save_file(engine_output(recorder, config["text_config"]["index_topk"]), arguments.out)


if __name__ == "__main__":
    main()
