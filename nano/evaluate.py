"""How well nano does what it is to do, by the training code. `cachalot bench abilities` measures the exported file.

    python evaluate.py RUN/state.safetensors            # the fixed sets of ../fixtures/abilities
"""

import random

import torch

import pictures


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
        h = forward(net, tower, [p[0] for p in part], [i for p in part for i in p[2]], image_id=renderer.image_id, **how)
        for b, (ids, learn, _, n) in enumerate(part):
            want = torch.tensor(learn[1:]).nonzero().squeeze(1)
            got = net.logits(h[b, want]).argmax(-1).cpu()
            good[n] = bool((got == torch.tensor(ids)[want + 1]).all())
    net.train()
    return good


def quick(net, tower, world, renderer, n, **how):
    """Share of `n` held-out samples an ability, drawn afresh from a fixed seed; for the log of a run."""
    r = random.Random(1234)
    draw = dict(facts=world.fact, unknown=world.unknown, sums=world.sums, lists=world.lists, chat=world.chat_samples.plain,
                back=world.chat_samples.back, follow=world.chat_samples.follow, needle_250=lambda r: world.needle(r, 18),
                tool=world.tool_samples.call, no_tool=world.tool_samples.no_tool)
    draw |= {k: (lambda r, k=k: pictures.image_sample(world, r, k)) for k in pictures.ASKS}
    out = {}
    for name, sampler in draw.items():
        some = [sampler(r) for _ in range(n if name != "facts" else 4 * n)]
        out[name] = round(sum(exact(net, tower, renderer, some, **how)) / len(some), 3)
    return out
