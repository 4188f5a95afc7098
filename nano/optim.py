"""Muon for matrices, those of the vision tower too, Adam for the rest; Engram tables and the tower have rates of their own."""

import math

import torch


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices [.., out, in]; same-shape matrices go through Newton-Schulz together."""

    def __init__(self, params, lr, momentum=0.95, decay=0.05, dtype=torch.bfloat16):
        super().__init__(params, dict(lr=lr, momentum=momentum, decay=decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            shapes = {}
            for p in g["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape[-2:]), []).append(p)
            for (o, i), params in shapes.items():
                self.update(g, o, i, params)

    def update(self, g, o, i, params):
        us = []
        for p in params:
            m = self.state[p].setdefault("m", torch.zeros_like(p))
            m.lerp_(p.grad, 1 - g["momentum"])
            us.append(p.grad.lerp(m, g["momentum"]).view(-1, o, i))
        x = torch.cat(us).to(self.dtype)
        x = x.mT.contiguous() if o > i else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            a = torch.bmm(x, x.mT)
            b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
            x = torch.baddbmm(x, b, x, beta=3.4445)
        x = (x.mT if o > i else x).float() * (0.2 * math.sqrt(max(o, i)))
        at = 0
        for p in params:
            n = p.numel() // (o * i)
            p.mul_(1 - g["lr"] * g["decay"]).add_(x[at : at + n].view_as(p), alpha=-g["lr"])
            at += n


class Optimisers:
    """All of them, with the rate of every group scaled together."""

    def __init__(self, net, tower, lr, tower_lr, dtype):
        matrices, tables, rest = [], [], []
        for name, p in net.named_parameters():
            small = name.endswith((".fn", "q_weight", "k_weight")) or p.ndim < 2 or name.startswith(("embed", "head"))
            (tables if "engram.embed" in name else rest if small else matrices).append(p)
        # With Adam the tower takes ten times as long to tell digits apart.
        sees = {n: p for n, p in tower.named_parameters() if p.ndim == 2 and not n.startswith("labels")}
        adam = lambda params, rate, **k: torch.optim.AdamW(params, rate, weight_decay=0.0, fused=True, **k)
        self.all = [
            Muon(matrices, lr, dtype=dtype),
            adam(rest, lr, betas=(0.9, 0.95)),
            adam(tables, lr * 5, betas=(0.9, 0.99), eps=1e-12),
            Muon(list(sees.values()), tower_lr, decay=0.01, dtype=dtype),
            adam([p for n, p in tower.named_parameters() if n not in sees], tower_lr / 4, betas=(0.9, 0.98)),
        ]
        self.groups = [(g, g["lr"]) for o in self.all for g in o.param_groups]
        self.parameters = [p for g, _ in self.groups for p in g["params"]]

    def step(self, scale):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for g, base in self.groups:
            g["lr"] = base * scale
        for o in self.all:
            o.step()
            o.zero_grad()
