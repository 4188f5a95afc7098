"""What a run leaves behind and the next takes up: weights in bfloat16, step, tokens, seed. No optimiser state."""

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from config import VISION, config
from model import Nano
from pictures import LABELS
from tokenizer import token_classes
from vision import Vision


class Tower(torch.nn.Module):
    """The vision tower and aligner, and what teaches it from labels: one linear head a label on its image tokens."""

    def __init__(self, hidden):
        super().__init__()
        self.tower = Vision(VISION, hidden)
        self.labels = torch.nn.ModuleList(torch.nn.Linear(4 * hidden, n) for n in LABELS)

    def forward(self, images):
        return self.tower(images)

    def label_loss(self, images, labels):
        """images [N,3,84,84], labels [N, kinds] with -1 for none. Mean cross entropy over the labels there are."""
        rows = self.tower(images)[:, [1, 2, 4, 5]].flatten(1)  # the 2 x 2 cells among start, newlines and end
        losses = [
            torch.nn.functional.cross_entropy(head(rows), labels[:, i], ignore_index=-1, reduction="sum")
            for i, head in enumerate(self.labels)
        ]
        return sum(losses) / (labels >= 0).sum().clamp_min(1)


def build(tokenizer):
    """An untrained text model and tower for a tokenizer."""
    classes, count = token_classes(tokenizer)
    net = Nano(config(tokenizer.get_vocab_size(), count), classes)
    return net, Tower(net.cfg.hidden_size)


def save(path, net, tower, progress):
    """`progress`: step, tokens, seed. Written beside and renamed, so that a cut leaves the last whole file."""
    tensors = {
        f"{part}.{k}": v.detach().to("cpu", torch.bfloat16).contiguous()
        for part, module in (("text", net), ("tower", tower))
        for k, v in module.state_dict().items()
    }
    path = Path(path)
    save_file(tensors, path.with_suffix(".new"), metadata={k: str(v) for k, v in progress.items()})
    os.replace(path.with_suffix(".new"), path)


def load(path, net, tower):
    """Fills the modules and returns progress. Refuses a file whose tensors are not exactly theirs."""
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k).float() for k in f.keys()}
        progress = {k: int(f.metadata()[k]) for k in ("step", "tokens", "seed")}
    for part, module in (("text", net), ("tower", tower)):
        module.load_state_dict({k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")})
    return progress
