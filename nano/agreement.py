"""The exported model three ways on the same tokens:  python agreement.py STATE EXPORT [--engine cachalot]

Compares, over 2,000 positions of held-out samples, the public reference in float32 (nemo_automodel, loaded as ../oracle
does) with the engine's `forward`, and with the training code in float32 and in bfloat16 (selection and roundings on):
share of equal top tokens and mean KL divergence from the reference. Needs ../oracle/requirements.txt.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import ops
import state
from evaluate import item_sample
from render import Renderer
from vision import span

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "oracle"))
import make_v41  # noqa: E402
import tiny_tokenizer  # noqa: E402

LENGTH, SEQUENCES = 512, 4
SETS = ("facts", "needle-250", "sums", "tools")


def sequences(renderer):
    """One sequence of LENGTH ids from each set: its items one after the other, as in training."""
    for name in SETS:
        ids = []
        for line in (HERE.parent / f"fixtures/abilities/{name}.jsonl").read_text(encoding="utf-8").splitlines():
            ids += renderer.sample(item_sample(json.loads(line)))[0]
            if len(ids) >= LENGTH:
                break
        yield ids[:LENGTH]


def reference(directory):
    """The public reference in float32, of the text part: it is built without tower and draft."""
    config = json.loads((directory / "config.json").read_text())
    config.pop("vision_config", None)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        bos_token=tiny_tokenizer.BOS,
        eos_token=tiny_tokenizer.EOS,
        pad_token=tiny_tokenizer.PAD,
    )
    with tempfile.TemporaryDirectory() as text:
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        keep = lambda n: not n.startswith(("vision.", "aligner.", "image_"))
        for shard in set(index["weight_map"].values()):
            save_file({n: t for n, t in load_file(directory / shard).items() if keep(n)}, Path(text) / shard)
        index["weight_map"] = {n: s for n, s in index["weight_map"].items() if keep(n)}
        (Path(text) / "model.safetensors.index.json").write_text(json.dumps(index))
        return make_v41.load(config, tokenizer, Path(text), torch.float32)


def engine(command, directory, ids):
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "ids.json").write_text(json.dumps(ids))
        subprocess.run(
            [
                *command.split(),
                "forward",
                "--model",
                str(directory),
                "--ids",
                f"{d}/ids.json",
                "--out",
                f"{d}/out.safetensors",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return load_file(f"{d}/out.safetensors")["logits"]


def training(net, ids, dtype):
    ops.set_cpu_rows(dtype)
    return net.logits(net(torch.tensor([ids]), sparse=True, qat=True)[0][0])


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("state", type=Path)
    p.add_argument("export", type=Path)
    p.add_argument(
        "--engine", default=shutil.which("cachalot"), help="command of the program; without it only the training code"
    )
    a = p.parse_args()
    torch.set_num_threads(1)
    path = HERE / "tokenizer.json"
    net, tower = state.build(Tokenizer.from_file(str(path)))
    state.load(a.state, net, tower)
    net.eval()
    model = reference(a.export)
    same, kl, count = {}, {}, 0
    for ids in sequences(Renderer(path, span)):
        right = make_v41.run(model, ids)["logits"].float().view(len(ids), -1)
        ways = {
            "training float32": training(net, ids, torch.float32),
            "training bfloat16": training(net, ids, torch.bfloat16),
        }
        if a.engine:
            ways["engine, exact"] = engine(a.engine, a.export, ids)
        count += len(ids)
        for name, logits in ways.items():
            logits = logits.float().view(len(ids), -1)
            same[name] = same.get(name, 0) + (logits.argmax(-1) == right.argmax(-1)).sum().item()
            divergence = torch.nn.functional.kl_div(
                logits.log_softmax(-1), right.log_softmax(-1), reduction="sum", log_target=True
            )
            kl[name] = kl.get(name, 0) + divergence.item()
    for name in same:
        print(f"{name:18} top-1 {same[name] / count:.4f}  mean KL {kl[name] / count:.2e}  ({count} positions)")


if __name__ == "__main__":
    main()
