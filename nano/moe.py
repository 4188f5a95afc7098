"""Mixture of experts with one shared expert (deepseek-v41.md 3.11). Experts are stacked until export."""

import torch
from torch import nn
from torch.nn import functional as F

import ops
from blocks import Linear, weight
from quant import fp4_weight, fp8_weight


class MoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        D, M, E = cfg.hidden_size, cfg.moe_intermediate_size, cfg.n_routed_experts
        self.cfg = cfg
        self.gate = Linear(D, E, "f32")
        for name in ("bias", "bias_vl"):
            self.gate.register_buffer(name, torch.zeros(E))
            self.register_buffer("load_" + name, torch.zeros(E), persistent=False)
        self.w13 = weight((E, 2 * M, D), D**-0.5)
        self.w2 = weight((E, D, M), 0.5 * M**-0.5)
        self.shared_w13 = weight((2 * M, D), D**-0.5)
        self.shared_w2 = weight((D, M), 0.5 * M**-0.5)

    def route(self, x, image):
        """x [N,D], image [N] bool or None -> scores [N,E] with gradient, chosen experts [N,k]."""
        score = F.softplus(F.linear(x, self.gate.weight.to(x.dtype)).float()).sqrt()
        with torch.no_grad():
            key = score + self.gate.bias
            if image is not None:
                key = torch.where(image.unsqueeze(1), score + self.gate.bias_vl, key)
            chosen = key.topk(self.cfg.num_experts_per_tok, -1).indices
            if self.training:
                count = lambda c: torch.bincount(c.flatten(), minlength=self.cfg.n_routed_experts)
                self.load_bias += count(chosen if image is None else chosen[~image])
                if image is not None:
                    self.load_bias_vl += count(chosen[image])
        return score, chosen

    def forward(self, x, st):
        cfg, k = self.cfg, self.cfg.num_experts_per_tok
        score, chosen = self.route(x, None if st.image is None else st.image.view(-1))
        order = chosen.flatten().argsort(stable=True)
        sizes = torch.bincount(chosen.flatten(), minlength=cfg.n_routed_experts).tolist()
        w = score.gather(1, chosen)
        w = (w / (w.sum(-1, keepdim=True) + 1e-20) * cfg.routed_scaling_factor).flatten()[order]
        token = order // k
        w13, w2 = (fp4_weight(p) if st.qat else p for p in (self.w13, self.w2))
        w13, w2 = w13.to(x.dtype), w2.to(x.dtype)
        gu = torch.cat([F.linear(a, b) for a, b in zip(x[token].split(sizes), w13.unbind(0))])
        h = ops.swiglu(gu, w, cfg.swiglu_limit)
        y = torch.cat([F.linear(a, b) for a, b in zip(h.split(sizes), w2.unbind(0))])
        s13, s2 = (fp8_weight(p) if st.qat else p for p in (self.shared_w13, self.shared_w2))
        out = F.linear(ops.swiglu(F.linear(x, s13.to(x.dtype)), None, cfg.swiglu_limit), s2.to(x.dtype))
        return out.index_add(0, token, y)

    @torch.no_grad()
    def update_bias(self, rate):
        """Towards equal load, apart for text and image tokens; a load that was not seen moves nothing."""
        for bias, load in ((self.gate.bias, self.load_bias), (self.gate.bias_vl, self.load_bias_vl)):
            bias += rate * torch.sign(load.mean() - load)
            load.zero_()
