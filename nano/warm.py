"""Starts training from a checkpoint in the released format whose tokenizer is another one.

The layers are taken as they are (dequantised); embedding and head by the spelling of tokens, a new token from the mean
of the old tokens it was made of. Rows of the Engram tables are addressed by n-grams of tokens: a row is taken over
where drawn samples show an n-gram that both tokenizers cut in the same places, and is small noise elsewhere.
"""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from abilities import World
from config import config
from memory import Engram
from render import Renderer, fragments
from tokenizer import token_classes
from vision import span

LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def dequantised(directory):
    """Released tensors as float32, scales applied (deepseek-v41.md 2.2)."""
    out = {}
    with safe_open(next(Path(directory).glob("*.safetensors")), "pt") as f:
        names = set(f.keys())
        for name in names:
            if name.endswith(".scale") and name.removesuffix("scale") + "weight" in names:
                continue
            w, scale = f.get_tensor(name), name.removesuffix("weight") + "scale"
            s = f.get_tensor(scale).float() if scale in names and name.endswith("weight") else None
            if w.dtype == torch.int8:
                codes = torch.stack((w & 15, (w >> 4) & 15), -1).flatten(-2).long()
                w = LEVELS[codes & 7] * (1 - 2 * (codes >> 3)) * s.repeat_interleave(32, -1)
            elif s is not None:
                rows = w.shape[0] // s.shape[0]
                w = w.float() * s.repeat_interleave(rows, 0).repeat_interleave(32, -1)
            out[name] = w.float()
    return out


def stacked(w, key, experts):
    """The tensor of a training state from released ones, or None."""
    head, _, leaf = key.rpartition(".")
    get = lambda form: w.get(f"{head}.{form}.weight")
    if leaf in ("w13", "w2"):
        one = lambda e: (
            torch.cat((get(f"experts.{e}.w1"), get(f"experts.{e}.w3"))) if leaf == "w13" else get(f"experts.{e}.w2")
        )
        return torch.stack([one(e) for e in range(experts)])
    if leaf in ("shared_w13", "shared_w2"):
        return (
            torch.cat((get("shared_experts.w1"), get("shared_experts.w3")))
            if leaf == "shared_w13"
            else get("shared_experts.w2")
        )
    for part in (".fn", ".scale", ".base"):
        if ".hc_" in key and key.endswith(part):
            key = key.removesuffix(part) + part.replace(".", "_")
    return w.get(key)


def spelled(renderer, pieces):
    """ids of fragments and the byte offset at which each ends."""
    ids, source = renderer.ids(pieces)
    control = {n for n, (_, c) in enumerate(pieces) if c}
    lengths = [
        len(pieces[n][0].encode()) if n in control else len(renderer.controls.id_to_token(i))
        for i, n in zip(ids, source)
    ]
    return ids, np.cumsum(lengths)


def seed_tables(net, w, new, old, samples=6000):
    """Copies Engram rows of n-grams that both tokenizers see alike in drawn samples (the mean where several meet)."""
    world, r, pieces = World(), random.Random(11), []
    for _ in range(samples):
        pieces += fragments(world.sample(r).request)
    for text in world.glosses:
        pieces.append((text + " ", False))
    (new_ids, new_ends), (old_ids, old_ends) = spelled(new, pieces), spelled(old, pieces)
    at = np.minimum(np.searchsorted(old_ends, new_ends), len(old_ends) - 1)
    same = (old_ends[at] == new_ends) & (
        np.concatenate(([0], old_ends[:-1]))[at] == np.concatenate(([0], new_ends[:-1]))
    )
    classes, count = token_classes(old.controls)
    cfg = config(len(classes), count)
    rows_new = lambda e: e.rows(net.token_map[torch.tensor(new_ids)].unsqueeze(0), None)[0]
    heads = cfg.engram_n_heads
    for L in cfg.engram_layer_ids:
        ours, theirs = net.layers[L].engram, Engram(cfg, L)
        to, source = rows_new(ours), theirs.rows(torch.tensor(classes)[torch.tensor(old_ids)].unsqueeze(0), None)[0]
        table, total = w[f"layers.{L}.engram.embed.weight"], torch.zeros(len(ours.embed.weight))
        summed = torch.zeros_like(ours.embed.weight)
        run = same.copy()
        for n in range(2, cfg.engram_max_ngram_size + 1):
            run = run & np.concatenate((np.zeros(n - 1, bool), same[: 1 - n]))
            k = torch.from_numpy(run.nonzero()[0])
            for c in range((n - 2) * heads, (n - 1) * heads):
                summed.index_add_(0, to[k, c], table[source[torch.from_numpy(at)[k], c]])
                total.index_add_(0, to[k, c], torch.ones(len(k)))
        torch.nn.init.normal_(ours.embed.weight, std=0.05)
        with torch.no_grad():
            ours.embed.weight[total > 0] = summed[total > 0] / total[total > 0].unsqueeze(1)


def start(directory, net, renderer):
    """Fills `net`; returns how many of its tensors came from the checkpoint."""
    w, state, taken = dequantised(directory), net.state_dict(), 0
    old = Renderer(Path(directory) / "tokenizer.json", span)
    for key, value in state.items():
        if key in ("embed.weight", "head.weight"):
            for i in range(len(value)):
                text = renderer.controls.id_to_token(i)
                ids = [old.controls.token_to_id(text)]
                if ids[0] is None:
                    ids = old.plain.encode(
                        renderer.controls.decode([i], skip_special_tokens=False), add_special_tokens=False
                    ).ids
                value[i] = w[key][ids].mean(0) if ids else 0
            taken += 1
        elif "engram.embed" not in key and (found := stacked(w, key, net.cfg.n_routed_experts)) is not None:
            value.copy_(found)
            taken += 1
    net.load_state_dict(state)
    seed_tables(net, w, renderer, old)
    return taken
