"""What every part of the text model is made of: linear layers with the release's roundings, norms, rotary tables."""

import math

import torch
from torch import nn
from torch.nn import functional as F

import ops
from quant import fp8_weight

EPS = 1e-20  # of every norm of the text model


def rms(x, w=None):
    """Root mean square norm over the last axis, in float32 (deepseek-v41.md 3.1)."""
    v = x.float()
    v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + EPS)
    return (v if w is None else v * w).to(x.dtype)


def weight(shape, std):
    return nn.Parameter(torch.randn(shape) * std)


class Linear(nn.Module):
    """[.., in] -> [.., out]. Master weights in float32, used as `ops.ROWS`, after the release's rounding with `qat`."""

    def __init__(self, i, o, fmt="fp8", gain=1.0):
        super().__init__()
        self.weight, self.fmt = weight((o, i), gain / math.sqrt(i)), fmt

    def forward(self, x, qat=False):
        w = fp8_weight(self.weight) if qat and self.fmt == "fp8" else self.weight
        return F.linear(x, w.to(x.dtype))


class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return rms(x, self.weight)


class Hyper(nn.Module):
    """Coefficients of one mHC site over 4 streams (3.5)."""

    def __init__(self, D):
        super().__init__()
        self.fn = weight((24, 4 * D), 0.1 / math.sqrt(4 * D))
        self.scale = nn.Parameter(torch.ones(3))
        base = torch.zeros(24)
        base[:4] = torch.tensor([0.0, -2.0, -2.0, -2.0])  # read mostly stream 0 at first
        base[4:8] = torch.tensor([0.0, -1.0, -1.0, -1.0])
        base[8:] = 3.0 * torch.eye(4).flatten()  # streams mostly keep to themselves
        self.base = nn.Parameter(base)


def frequencies(cfg, compressed):
    """Rotary frequencies [rd/2] of window layers, or of layers with compressed entries (YaRN), 3.6."""
    rd, theta = cfg.qk_rope_head_dim, cfg.compress_rope_theta if compressed else cfg.rope_theta
    f = 1.0 / theta ** (torch.arange(0, rd, 2).float() / rd)
    if compressed:
        s = cfg.rope_scaling
        L0, k = s["original_max_position_embeddings"], 2 * math.log(theta)
        low = max(math.floor(rd * math.log(L0 / (s["beta_fast"] * 2 * math.pi)) / k), 0)
        high = min(math.ceil(rd * math.log(L0 / (s["beta_slow"] * 2 * math.pi)) / k), rd - 1)
        ramp = ((torch.arange(rd // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
        f = f / s["factor"] * ramp + f * (1 - ramp)
    return f


def rope(x, cs, inverse=False):
    """x [B,T,d] or [B,T,H,d]; cs = (cos, sin) [T, rd/2]; rotates the last rd channels in adjacent pairs."""
    y = ops.rope(x if x.ndim == 4 else x.unsqueeze(2), *cs, -1.0 if inverse else 1.0)
    return y.view_as(x)
