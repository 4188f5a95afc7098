"""Checks of the training code:  python check.py     (a minute; exits with 1 if any fails)"""

import json
import random
import sys
from pathlib import Path

import torch

import chat
import ops
import ops_torch
import pictures
import tools
import wordings
from abilities import World
from config import config
from export import released
from model import Nano
from render import Renderer
from stream import Stream
from vision import span
from warm import LEVELS

HERE = Path(__file__).parent
FAILED = []


def check(name, ok, detail=""):
    print("PASS" if ok else "FAIL", name, detail, flush=True)
    if not ok:
        FAILED.append(name)


def distance(a, b):
    return ((a.float() - b.float()).norm() / (b.float().norm() + 1e-12)).item()


def both(name, kernel, plain, inputs, limit):
    """Values and gradients of a kernel against plain PyTorch in float32 from the same inputs."""
    outs = []
    for call, dtype in ((kernel, None), (plain, torch.float32)):
        leaves = [
            t.detach().to(dtype or t.dtype).requires_grad_(True) if torch.is_tensor(t) and t.is_floating_point() else t
            for t in inputs
        ]
        out = call(*leaves)
        out = [o for o in (out if isinstance(out, tuple) else (out,)) if o is not None and o.requires_grad]
        torch.manual_seed(5)
        sum((o.float() * torch.randn(o.shape)).sum() for o in out).backward()
        outs.append(
            [o.detach() for o in out]
            + [t.grad for t in leaves if torch.is_tensor(t) and t.requires_grad and t.grad is not None]
        )
    worst = max(distance(a, b) for a, b in zip(*outs, strict=True))
    check(f"kernel {name}", worst < limit, f"{worst:.1e} of {limit:.0e}")


def kernels(dtype, limit):
    torch.manual_seed(1)
    N, D, T, H, d, W = 70, 64, 128, 2, 32, 32
    row = lambda *shape: torch.randn(*shape).to(dtype)
    hc = [torch.randn(24, 4 * D) * 0.1, torch.rand(3) + 0.5, torch.randn(24), torch.rand(D) + 0.5]
    both(
        f"site {dtype}",
        lambda X, p, *h: ops.Site.apply(X, p, *h, 20, 1e-6, 1e-20),
        lambda X, p, *h: ops_torch.site(X, p, *h, 20, 1e-6, 1e-20),
        [row(N, 4, D), torch.rand(N, 4), *hc],
        limit,
    )
    both(
        f"expand {dtype}",
        ops.Expand.apply,
        ops_torch.expand,
        [row(N, 4, D), row(N, D), torch.rand(N, 4), torch.rand(N, 16)],
        limit,
    )
    both(
        f"swiglu {dtype}",
        lambda g, w: ops.SwiGLU.apply(g * 6, w, 10.0),
        lambda g, w: ops_torch.swiglu(g * 6, w, 10.0),
        [row(N, 2 * D), torch.rand(N)],
        limit,
    )
    angle = torch.randn(T, d // 4)
    both(
        f"rope {dtype}",
        lambda x: ops.Rope.apply(x, angle.cos(), angle.sin(), 1.0),
        lambda x: ops_torch.rope(x, angle.cos(), angle.sin(), 1.0),
        [row(2, T, H, d)],
        limit,
    )
    target = torch.randint(0, 90, (N,))
    both(
        f"head {dtype}",
        lambda h, w: ops.HeadLoss.apply(h, w, target),
        lambda h, w: ops_torch.head_loss(h, w, target),
        [row(N, D), torch.randn(90, D) * 0.2],
        limit,
    )
    mask_w = (torch.rand(T, 2 * W) < 0.5).to(torch.uint8)
    mask_w[:W, :W], mask_w[:, W] = 0, 1
    mask_c = (torch.rand(2, T, 40) < 0.3).to(torch.uint8)
    for name, comp in (("window", None), ("compressed", row(2, 40, d))):
        mc = None if comp is None else mask_c
        call = lambda f: lambda q, kv, c, s: f(q, kv, c, mask_w, mc, s, W, True)[0]
        both(
            f"attention {name} {dtype}",
            lambda q, kv, c, s: ops.SinkAttention.apply(q, kv, c, mask_w, ops.NONE if mc is None else mc, s, W, True)[
                0
            ],
            call(ops_torch.sink_attention),
            [row(2, T, H, d), row(2, T, d), comp, torch.randn(H)],
            limit,
        )


def whole_model():
    """The model with kernels equals the model without, and a token sees nothing after it."""
    torch.manual_seed(2)
    cfg = config(300, 280)
    net = Nano(cfg, torch.arange(300) % 280).eval()
    ids = torch.randint(3, 300, (2, 256))
    ops.set_cpu_rows(torch.float32)
    outs = {}
    for how in (dict(sparse=True), dict(sparse=True, qat=True, no_memory=True, topk=0)):
        with torch.no_grad():
            a = net(ids, **how)[0]
            kernel, ops._cpp = ops._cpp, None
            b = net(ids, **how)[0]
            ops._cpp = kernel
        worst = distance(a, b)
        check(f"model with and without kernels {how}", worst < (1e-4 if "qat" not in how else 0.05), f"{worst:.1e}")
        outs[len(how)] = a
    with torch.no_grad():
        again = ids.clone()
        again[:, 200:] = torch.randint(3, 300, (2, 56))
        moved = (net(again, sparse=True)[0][:, :200] - outs[1][:, :200]).abs().max().item()
    check("no token sees what follows it", moved < 1e-4, f"{moved:.1e}")


def export_formats():
    """Exported weights decode to exactly what the rounded phase of training computes with."""
    from quant import fp4_weight, fp8_weight

    w = torch.randn(64, 96) * 0.1
    out = released({"x.wkv.weight": w, "x.w2": w.unsqueeze(0)})
    fp8 = out["x.wkv.weight"].float() * out["x.wkv.scale"].float().repeat_interleave(32, 0).repeat_interleave(32, 1)
    codes = out["x.experts.0.w2.weight"]
    nibbles = torch.stack((codes & 15, (codes >> 4) & 15), -1).flatten(-2).long()
    fp4 = LEVELS[nibbles & 7] * (1 - 2 * (nibbles >> 3)) * out["x.experts.0.w2.scale"].float().repeat_interleave(32, -1)
    check("FP8 and FP4 of the export", torch.equal(fp8, fp8_weight(w)) and torch.equal(fp4, fp4_weight(w)))


def prompts():
    """Rendered text and ids against the protocol fixtures (requests of the kind that samples have)."""
    import gzip
    import tempfile

    fixtures = HERE.parent / "fixtures/protocol"
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        f.write(gzip.open(fixtures / "tokenizer-v41.json.gz").read())
        f.flush()
        renderer = Renderer(f.name, span)
    seen, wrong = 0, []
    efforts = {"low", "high", "max"}
    others = {
        "v41_system_billing_header_stripped",
        "v41_tool_args_big_integer",
    }  # what the API layer does before the encoder
    for line in (fixtures / "encode.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        request = case["request"]
        if (
            case["model"] != "v41"
            or case["name"] in others
            or case["api"] != "chat"
            or set(request) - {"messages", "tools", "thinking", "reasoning_effort"}
        ):
            continue
        roles = {m["role"] for m in request["messages"]}
        plain = all(
            isinstance(m.get("content"), (str, type(None)))
            and set(m) <= {"role", "content", "reasoning_content", "tool_calls", "tool_call_id"}
            for m in request["messages"]
        )
        if (
            roles - {"system", "user", "assistant", "tool"}
            or not plain
            or request["messages"][-1]["role"] == "assistant"
            or request.get("reasoning_effort", "high") not in efforts
        ):
            continue
        if any("strict" in t.get("function", {}) for t in request.get("tools", [])) or any(
            m["role"] == "system" and not m["content"] for m in request["messages"]
        ):
            continue
        seen += 1
        if renderer.prompt(request) != case["ids"]:
            wrong.append(case["name"])
    check("prompts of the protocol fixtures", seen > 20 and not wrong, f"{seen} cases {wrong}")


def samples():
    """What is held out is never trained on; a sample's prompt is a prefix of the sample; batches repeat."""
    for relation in wordings.ANSWERS:
        trained, held = wordings.wordings(relation)
        same = {t.lower().strip("?. ") for t in trained} & {h.lower().strip("?. ") for h in held}
        if len(trained) < 12 or same:
            check(f"wordings of {relation}", False, f"{len(trained)} {same}")
    world, held, r = World(), World(held=True), random.Random(3)
    asks = [World.SUMS, World.NEEDLES, *World.LISTS.values(), chat.STORIES, *(q for q, _, _ in chat.PLAIN)]
    leaked = set()
    for frames in [*asks, *tools.ASKS.values(), *pictures.ASKS.values()]:
        kept = {wordings.plain(f) for f in frames[-2:]}
        leaked |= kept & {wordings.plain(world.pick(r, frames)) for _ in range(2000)}
    check("no held-out wording comes out when others vary", not leaked, str(sorted(leaked)[:5]))
    renderer = Renderer(HERE / "tokenizer.json", span)
    bad = 0
    for _ in range(400):
        sample = (world if r.random() < 0.5 else held).sample(r, World.LONG)
        ids, learn = renderer.sample(sample)
        request = dict(sample.request, messages=sample.request["messages"][:-1])
        prompt = renderer.prompt(request, sample.images)
        bad += ids[: len(prompt)] != prompt or not learn[len(prompt)] or learn[len(prompt) - 1] or ids[-1] != 1
    check("samples go on exactly from the program's prompt", bad == 0, f"{bad} of 400 wrong")
    said = lambda w, n: {
        m["content"].split("\n")[-1]
        for _ in range(n)
        for m in w.sample(r, dict(fact=3, sums=1, unknown=2, needle=2)).request["messages"]
        if m["role"] == "user"
    }
    common = said(world, 4000) & said(held, 2000)
    check("no held-out question is trained on", not common, str(sorted(common)[:5]))
    batches = [Stream(renderer, 4).batch(9, 4, 256, World.SHORT) for _ in range(2)]
    check("a batch depends on its step alone", torch.equal(batches[0].ids, batches[1].ids))


def main():
    torch.set_num_threads(1)
    if ops._cpp is not None:
        kernels(torch.float32, 1e-4)
        kernels(torch.bfloat16, 2e-2)
    whole_model()
    export_formats()
    prompts()
    samples()
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
