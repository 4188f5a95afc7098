"""The operations of ops.py in plain PyTorch: what a GPU runs, and what the C++ kernels are checked against."""

import torch
from torch.nn import functional as F


def site(X, pre_in, fn, scale, base, w, iters, hc_eps, eps):
    """One mHC site (deepseek-v41.md 3.5). X [N,4,D] -> x [N,D], pre [N,4], post [N,4], comb [N,16]."""
    N, S, D = X.shape
    flat = X.reshape(N, -1)
    r = torch.rsqrt(flat.float().square().mean(-1, keepdim=True) + eps)
    m = (flat @ fn.to(X.dtype).T).float() * r
    z = m * scale.repeat_interleave(torch.tensor([4, 4, 16], device=X.device)) + base
    pre, post = torch.sigmoid(z[:, :4]) + hc_eps, 2 * torch.sigmoid(z[:, 4:8])
    comb = z[:, 8:].view(N, 4, 4).softmax(-1) + hc_eps
    comb = comb / (comb.sum(1, keepdim=True) + hc_eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(2, keepdim=True) + hc_eps)
        comb = comb / (comb.sum(1, keepdim=True) + hc_eps)
    c = (pre_in.unsqueeze(-1) * X.float()).sum(1)
    x = c * torch.rsqrt(c.square().mean(-1, keepdim=True) + eps) * w
    return x.to(X.dtype), pre, post, comb.reshape(N, 16)


def expand(X, y, post, comb):
    out = torch.einsum("njk,njd->nkd", comb.view(-1, 4, 4), X.float()) + post.unsqueeze(-1) * y.float().unsqueeze(1)
    return out.to(X.dtype)


def swiglu(gu, weight, limit):
    g, u = gu.float().chunk(2, -1)
    h = F.silu(g.clamp(max=limit)) * u.clamp(-limit, limit)
    return (h if weight is None else h * weight.unsqueeze(-1)).to(gu.dtype)


def rope(x, cos, sin, sign):
    half = cos.shape[1]
    plain, turned = x[..., : -2 * half], x[..., -2 * half :].float().unflatten(-1, (-1, 2))
    re, im = turned.unbind(-1)
    c, s = cos.unsqueeze(1), sign * sin.unsqueeze(1)
    turned = torch.stack((re * c - im * s, re * s + im * c), -1).flatten(-2)
    return torch.cat((plain, turned.to(x.dtype)), -1)


def head_loss(h, head, target):
    return F.cross_entropy((h @ head.to(h.dtype).T).float(), target)


def sink_attention(q, kv, comp, mask_w, mask_c, sink, window, want_target):
    """As ops.sink_attention."""
    B, T, H, d = q.shape
    n = T // window
    padded = torch.cat((kv.new_zeros(B, window, d), kv), 1)
    keys = padded.unfold(1, 2 * window, window).transpose(-1, -2).reshape(B * n, 2 * window, d)
    lw = torch.bmm(q.reshape(B * n, window * H, d), keys.transpose(1, 2)).view(B, T, H, -1).float()
    lw = (lw * d**-0.5).masked_fill(mask_w.view(1, T, 1, -1) == 0, -torch.inf)
    parts = [lw]
    if comp is not None:
        lc = torch.bmm(q.reshape(B, T * H, d), comp.transpose(1, 2)).view(B, T, H, -1).float() * d**-0.5
        parts.append(lc.masked_fill(mask_c.unsqueeze(2) == 0, -torch.inf))
    parts.append(sink.view(1, 1, H, 1).expand(B, T, H, 1))
    p = torch.cat(parts, -1).softmax(-1)
    K = lw.shape[-1]
    o = torch.bmm(p[..., :K].to(q.dtype).reshape(B * n, window * H, K), keys).view(B, T, H, d)
    target = None
    if comp is not None:
        pc = p[..., K:-1].to(q.dtype)
        o = o + torch.bmm(pc.reshape(B, T * H, -1), comp).view(B, T, H, d)
        target = pc.detach().float().sum(2) if want_target else None
    return o, target
