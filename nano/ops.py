"""The operations that training spends its time in, with exact backward.

On a CPU they are the kernels of ops.cpp, for bfloat16 or float32 rows; elsewhere, or with NANO_KERNELS=0, those of
ops_torch.py. Coefficients (mHC, router, softmax statistics) are float32 in both.
"""

import os
import sys
from pathlib import Path

import torch
from torch.autograd import Function

import ops_torch

NONE = torch.empty(0)


def _bf16_instructions():
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _build():
    if os.environ.get("NANO_KERNELS") == "0":
        return None
    from torch.utils.cpp_extension import load

    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # where pip puts ninja
    return load(
        "nano_ops_c",
        [str(Path(__file__).with_name("ops.cpp"))],
        extra_ldflags=["-fopenmp"],
        extra_cflags=["-O3", "-march=native", "-ffast-math", "-fopenmp"],
    )


_cpp = _build()
_cpu_rows = torch.bfloat16 if _bf16_instructions() else torch.float32


def rows_of(device):
    """Type of residual streams and activations: bfloat16 where the processor multiplies it, else float32."""
    return _cpu_rows if device.type == "cpu" else torch.bfloat16


def set_cpu_rows(dtype):
    """Overrides the choice of `rows_of` for the CPU (checks and the agreement measurement use it)."""
    global _cpu_rows
    _cpu_rows = dtype


def _kernels(x):
    return _cpp is not None and x.device.type == "cpu"


def site(X, pre_in, hc, w, cfg):
    """Open an mHC site: x [N,D] normed collapse of X [N,4,D] with the mix handed in; pre, post [N,4], comb [N,16]."""
    call = Site.apply if _kernels(X) else ops_torch.site
    return call(X, pre_in, hc.fn, hc.scale, hc.base, w, cfg.hc_sinkhorn_iters, cfg.hc_eps, 1e-20)


def expand(X, y, post, comb):
    """X'[k] = post[k] y + sum_j comb[j,k] X[j]."""
    return (Expand.apply if _kernels(X) else ops_torch.expand)(X, y, post, comb)


def swiglu(gu, weight, limit):
    """gu [N,2F] (gate, up) -> [N,F]; weight [N] or None scales rows."""
    if not _kernels(gu):
        return ops_torch.swiglu(gu, weight, limit)
    return SwiGLU.apply(gu, NONE if weight is None else weight, limit)


def rope(x, cos, sin, sign):
    """x [B,T,H,d]: adjacent pairs of the last channels turned by sign * angle."""
    return (Rope.apply if _kernels(x) else ops_torch.rope)(x, cos, sin, sign)


def head_loss(h, head, target):
    """Mean cross entropy of h [N,D] against target [N] through head [V,D]."""
    return (HeadLoss.apply if _kernels(h) else ops_torch.head_loss)(h, head, target)


def sink_attention(q, kv, comp, mask_w, mask_c, sink, window, want_target):
    """Window (two chunks of keys per chunk of queries) plus compressed entries, one shared softmax with a sink.

    q [B,T,H,d], kv [B,T,d], comp [B,M,d] or None; mask_w [T,2W] u8, mask_c [1 or B,T,M] u8; keys are the values.
    Returns o [B,T,H,d] and, if wanted, the compressed probabilities summed over heads [B,T,M] (the indexer's target).
    """
    if not _kernels(q):
        return ops_torch.sink_attention(q, kv, comp, mask_w, mask_c, sink, window, want_target)
    return SinkAttention.apply(q, kv, comp, mask_w, NONE if mask_c is None else mask_c, sink, window, want_target)


class Site(Function):
    @staticmethod
    def forward(ctx, X, pre_in, fn, scale, base, w, iters, hc_eps, eps):
        flat = X.view(X.shape[0], -1)
        fn16 = fn.to(X.dtype)
        m = (flat @ fn16.T).float()
        x, pre, post, comb, r = _cpp.site_forward(X, m, pre_in, w, scale, base, iters, hc_eps, eps)
        ctx.save_for_backward(X, m, r, pre_in, fn16, scale, base, w)
        ctx.constants = (iters, hc_eps, eps)
        return x, pre, post, comb

    @staticmethod
    def backward(ctx, gx, gpre, gpost, gcomb):
        X, m, r, pre_in, fn16, scale, base, w = ctx.saved_tensors
        zeros = lambda g, n: torch.zeros(X.shape[0], n) if g is None else g.contiguous()
        gx = torch.zeros(X.shape[0], X.shape[2], dtype=X.dtype) if gx is None else gx.contiguous()
        gX, gm, gpre_in, gw, gz = _cpp.site_backward(
            X, m, r, pre_in, w, scale, base, gx, zeros(gpre, 4), zeros(gpost, 4), zeros(gcomb, 16), *ctx.constants
        )
        gm16 = gm.to(X.dtype)
        flat = gX.view(X.shape[0], -1)
        flat.addmm_(gm16, fn16)
        gfn = (gm16.T @ X.view(X.shape[0], -1)).float()
        gscale = torch.stack([part.sum() for part in gz[:24].split([4, 4, 16])])
        return gX, gpre_in, gfn, gscale, gz[24:], gw, None, None, None


class Expand(Function):
    @staticmethod
    def forward(ctx, X, y, post, comb):
        ctx.save_for_backward(X, y, post, comb)
        return _cpp.expand_forward(X, y, post, comb)

    @staticmethod
    def backward(ctx, g):
        return tuple(_cpp.expand_backward(*ctx.saved_tensors, g.contiguous()))


class SwiGLU(Function):
    @staticmethod
    def forward(ctx, gu, weight, limit):
        ctx.save_for_backward(gu, weight)
        ctx.limit = limit
        return _cpp.swiglu_forward(gu, weight, limit)

    @staticmethod
    def backward(ctx, g):
        gu, weight = ctx.saved_tensors
        ggu, gw = _cpp.swiglu_backward(gu, weight, g.contiguous(), ctx.limit)
        return ggu, gw if weight.numel() else None, None


class Rope(Function):
    @staticmethod
    def forward(ctx, x, cos, sin, sign):
        ctx.save_for_backward(cos, sin)
        ctx.sign = sign
        return _cpp.rope(x.contiguous(), cos, sin, sign)

    @staticmethod
    def backward(ctx, g):
        return _cpp.rope(g.contiguous(), *ctx.saved_tensors, -ctx.sign), None, None, None


class HeadLoss(Function):
    @staticmethod
    def forward(ctx, h, head, target, chunk=2048):
        w16 = head.to(h.dtype)
        weight = torch.full((len(h),), 1 / max(len(h), 1))
        gh, ghead, total = torch.empty_like(h), torch.zeros_like(head), 0.0
        for a in range(0, len(h), chunk):
            rows = slice(a, a + chunk)
            g = h[rows] @ w16.T
            total += (_cpp.cross_entropy(g, target[rows], weight[rows]) * weight[rows]).sum()
            gh[rows] = g @ w16
            ghead += (g.T @ h[rows]).float()
        ctx.save_for_backward(gh, ghead)
        return total

    @staticmethod
    def backward(ctx, g):
        gh, ghead = ctx.saved_tensors
        return gh * g.to(gh.dtype), ghead * g, None, None


class SinkAttention(Function):
    @staticmethod
    def forward(ctx, q, kv, comp, mask_w, mask_c, sink, window, want_target):
        B, T, H, d = q.shape
        n = T // window
        scale = d**-0.5
        padded = torch.cat((kv.new_zeros(B, window, d), kv), 1)
        keys = padded.unfold(1, 2 * window, window).transpose(-1, -2).reshape(B * n, 2 * window, d)
        qw = q.reshape(B * n, window * H, d)
        lw = torch.bmm(qw, keys.transpose(1, 2)).view(B, T, H, 2 * window)
        has = comp is not None
        lc = torch.bmm(q.reshape(B, T * H, d), comp.transpose(1, 2)).view(B, T, H, -1) if has else kv.new_empty(0)
        ps = _cpp.softmax_forward(lw, lc, mask_w, mask_c, sink, scale)
        o = torch.bmm(lw.view(B * n, window * H, 2 * window), keys).view(B, T, H, d)
        if has:
            o = o + torch.bmm(lc.view(B, T * H, -1), comp).view(B, T, H, d)
        ctx.save_for_backward(q, keys, comp, lw, lc, ps)
        ctx.shape, ctx.scale, ctx.window = (B, T, H, d), scale, window
        target = lc.float().sum(2) if has and want_target else NONE
        ctx.mark_non_differentiable(target)
        return o, target

    @staticmethod
    def backward(ctx, go, _):
        q, keys, comp, pw, pc, ps = ctx.saved_tensors
        (B, T, H, d), scale, W = ctx.shape, ctx.scale, ctx.window
        n = T // W
        go = go.contiguous()
        gow = go.view(B * n, W * H, d)
        gw = torch.bmm(gow, keys.transpose(1, 2)).view(B, T, H, 2 * W)
        has = comp is not None
        gc = torch.bmm(go.view(B, T * H, d), comp.transpose(1, 2)).view(B, T, H, -1) if has else NONE.to(q.dtype)
        pw2, gcomp = pw.view(B * n, W * H, 2 * W), None
        gkeys = torch.bmm(pw2.transpose(1, 2), gow)
        if has:
            pc2 = pc.view(B, T * H, -1)
            gcomp = torch.bmm(pc2.transpose(1, 2), go.view(B, T * H, d))
        gsink = _cpp.softmax_backward(pw, pc, ps, gw, gc, scale)
        gw2 = gw.view(B * n, W * H, 2 * W)
        gq = torch.bmm(gw2, keys).view(B, T, H, d)
        gkeys += torch.bmm(gw2.transpose(1, 2), q.reshape(B * n, W * H, d))
        if has:
            gc2 = gc.view(B, T * H, -1)
            gq = gq + torch.bmm(gc2, comp).view(B, T, H, d)
            gcomp += torch.bmm(gc2.transpose(1, 2), q.reshape(B, T * H, d))
        gkeys = gkeys.view(B, n, 2, W, d)
        gkv = gkeys[:, :, 1].clone()
        gkv[:, :-1] += gkeys[:, 1:, 0]
        return gq, gkv.view(B, T, d), gcomp, None, None, gsink, None, None
