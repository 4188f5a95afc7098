"""How well nano does what it is to do, by the training code:  python evaluate.py STATE [--set NAME] [--no-memory] ...

Reads the fixed sets of ../fixtures/abilities and asks of every item whether greedy decoding gives its whole answer,
token by token, with sparse selection and roundings as in the exported file. That is stricter than the items' own
`judge`, by which the program measures the exported file.
"""

import argparse
import base64
import io
import json
import random
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer

import pictures
from render import Renderer, Sample
from vision import span

HERE = Path(__file__).parent


def forward(net, tower, rows, images, **how):
    """Hidden states [B,T,D] of token rows (padded at the end) with their images, PIL images in row order."""
    W, device = net.cfg.sliding_window, net.embed.weight.device
    T = -(-max(map(len, rows)) // W) * W
    ids = torch.full((len(rows), T), 2)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
    ids = ids.to(device)
    if images:
        pixels = torch.stack([pictures.pixels(i) for i in images]).to(device)
        how.update(image=ids == how.pop("image_id"), image_rows=tower(pixels).flatten(0, 1))
    else:
        how.pop("image_id", None)
    return net(ids, **how)[0]


@torch.no_grad()
def exact(net, tower, renderer, samples, group=8, **how):
    """For each sample whether greedy decoding would reproduce the whole answer: every learned token is the argmax."""
    net.eval()
    rendered = sorted(((*renderer.sample(s), s.images, n) for n, s in enumerate(samples)), key=lambda t: len(t[0]))
    good = [False] * len(samples)
    for at in range(0, len(rendered), group):
        part = rendered[at : at + group]
        h = forward(
            net, tower, [p[0] for p in part], [i for p in part for i in p[2]], image_id=renderer.image_id, **how
        )
        for b, (ids, learn, _, n) in enumerate(part):
            want = torch.tensor(learn[1:]).nonzero().squeeze(1)
            got = net.logits(h[b, want]).argmax(-1).cpu()
            good[n] = bool((got == torch.tensor(ids)[want + 1]).all())
    net.train()
    return good


def quick(net, tower, world, renderer, n, **how):
    """Share of `n` held-out samples an ability, drawn afresh from a fixed seed; for the log of a run."""
    r = random.Random(1234)
    draw = dict(
        facts=world.fact,
        unknown=world.unknown,
        sums=world.sums,
        lists=world.lists,
        chat=world.chat_samples.plain,
        back=world.chat_samples.back,
        follow=world.chat_samples.follow,
        needle_250=lambda r: world.needle(r, 18),
        tool=world.tool_samples.call,
        no_tool=world.tool_samples.no_tool,
    )
    draw |= {k: (lambda r, k=k: pictures.image_sample(world, r, k)) for k in pictures.ASKS}
    out = {}
    for name, sampler in draw.items():
        some = [sampler(r) for _ in range(n if name != "facts" else 4 * n)]
        out[name] = round(sum(exact(net, tower, renderer, some, **how)) / len(some), 3)
    return out


def item_sample(item):
    """A line of a fixed set as a sample with its answer."""
    answer = dict(role="assistant", content=item["answer"] if isinstance(item["answer"], str) else "")
    if not isinstance(item["answer"], str):
        answer["tool_calls"] = item["answer"]
    if "reasoning" in item:
        answer["reasoning_content"] = item["reasoning"]
    images = [
        Image.open(io.BytesIO(base64.b64decode(p["image_url"]["url"].split(",")[1])))
        for m in item["request"]["messages"]
        if isinstance(m.get("content"), list)
        for p in m["content"]
        if p["type"] == "image_url"
    ]
    return Sample(dict(item["request"], messages=[*item["request"]["messages"], answer]), images)


def main():
    import state

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("state", type=Path)
    p.add_argument("--sets", type=Path, default=HERE.parent / "fixtures/abilities")
    p.add_argument("--set", action="append", help="only this file of the sets (repeatable)")
    p.add_argument("--most", type=int, default=10**9, help="items an ability")
    p.add_argument("--no-memory", action="store_true", help="Engram rows read as zeros")
    p.add_argument("--window-only", action="store_true", help="no compressed entry is selected")
    p.add_argument("--dense", action="store_true", help="neither selection nor roundings")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    path = HERE / "tokenizer.json"
    net, tower = state.build(Tokenizer.from_file(str(path)))
    print(json.dumps(state.load(a.state, net, tower)))
    renderer = Renderer(path, span)
    how = dict(sparse=not a.dense, qat=not a.dense, no_memory=a.no_memory, topk=0 if a.window_only else None)
    for file in sorted(a.sets.glob("*.jsonl")):
        if a.set and file.stem not in a.set:
            continue
        by = defaultdict(list)
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            by[item["ability"]].append(item_sample(item))
        total = []
        for ability, samples in by.items():
            good = exact(net, tower, renderer, samples[: a.most], **how)
            total += good
            print(f"{ability:20} {sum(good) / len(good):.3f} of {len(good)}", flush=True)
        print(f"{file.stem:20} {sum(total) / len(total):.3f} of {len(total)} (all)", flush=True)


if __name__ == "__main__":
    main()
