"""DeepSeek V4.1 text backbone for training. Parameter names are those of the released checkpoint.

Dense attention over everything visible or selected, autograd everywhere, caches and weights rounded as the release
rounds them when `qat` is on. Stacked expert tensors are split on export.
"""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

import ops
from attention import Attention
from blocks import Hyper, Linear, Norm, frequencies
from memory import Engram
from moe import MoE


class Layer(nn.Module):
    def __init__(self, cfg, L):
        super().__init__()
        D = cfg.hidden_size
        self.cfg = cfg
        self.attn_norm, self.ffn_norm = Norm(D), Norm(D)
        self.hc_attn, self.hc_ffn = Hyper(D), Hyper(D)
        self.attn, self.ffn = Attention(cfg, L), MoE(cfg)
        self.engram = Engram(cfg, L) if L in cfg.engram_layer_ids else None

    def forward(self, X, pre, st):
        B, T = st.classes.shape
        x, pa, post, comb = ops.site(X, pre, self.hc_attn, self.attn_norm.weight, self.cfg)
        X = ops.expand(X, self.attn(x.view(B, T, -1), st).reshape(B * T, -1), post, comb)
        x, pf, post, comb = ops.site(X, pa, self.hc_ffn, self.ffn_norm.weight, self.cfg)
        return ops.expand(X, self.ffn(x, st), post, comb), pf


class State(SimpleNamespace):
    """What layers hand to each other in one forward; also collects the indexer's loss."""

    def open_target(self, scores):
        self.pending, self.target, self.sources, self.seen = scores, 0, 0, self.visible

    def add_target(self, probabilities):
        self.target, self.sources = self.target + probabilities, self.sources + 1

    def close_target(self):
        """KL(attention over compressed entries, summed over heads and consuming layers || softmax(scores))."""
        if self.pending is None or not self.sources:
            return
        p = self.target / (self.target.sum(-1, keepdim=True) + 1e-9)
        ok = self.seen.any(-1) & (self.pos > 8)
        logq = self.pending[:, ok].log_softmax(-1).masked_fill(~self.seen[ok], 0)
        p = p[:, ok]
        self.index_loss = self.index_loss + (p * (p.clamp_min(1e-9).log() - logq)).sum(-1).mean()
        self.pending = None


class Nano(nn.Module):
    """The model; `token_map` gives the Engram class of every id."""

    def __init__(self, cfg, token_map):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        nn.init.normal_(self.embed.weight, std=0.5)
        self.head = Linear(cfg.hidden_size, cfg.vocab_size, "f32", 0.5)
        self.norm = Norm(cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg, L) for L in range(cfg.num_hidden_layers))
        self.register_buffer("token_map", torch.as_tensor(token_map), persistent=False)
        self.register_buffer("window_frequencies", frequencies(cfg, False), persistent=False)
        self.register_buffer("entry_frequencies", frequencies(cfg, True), persistent=False)

    def state(self, ids, index, sparse, qat, image, no_memory, topk):
        T, W, dev = ids.shape[1], self.cfg.sliding_window, ids.device
        pos = torch.arange(T, device=dev)
        angle = [pos.float().unsqueeze(1) * f for f in (self.window_frequencies, self.entry_frequencies)]
        kp = (pos // W * W - W).unsqueeze(1) + torch.arange(2 * W, device=dev)
        window = (kp >= 0) & (kp <= pos.unsqueeze(1)) & (kp > pos.unsqueeze(1) - W)
        return State(
            qat=qat,
            index=index or ("select" if sparse else None),
            sparse=sparse,
            pos=pos,
            image=image,
            rope=[(a.cos(), a.sin()) for a in angle],
            classes=self.token_map[ids],
            no_memory=no_memory,
            window_mask=window.to(torch.uint8),
            pending=None,
            index_loss=torch.zeros((), device=dev),
            candidates=None,
            topk=self.cfg.index_topk if topk is None else topk,
        )

    def forward(
        self,
        ids,
        *,
        index=None,
        sparse=False,
        qat=False,
        image=None,
        image_rows=None,
        no_memory=False,
        topk=None,
        features=(),
    ):
        """ids [B,T], T a multiple of the window. Returns hidden [B,T,D] and the indexer's loss.

        `image` [B,T] marks the positions that `image_rows` [positions, D] fill, in order. `index="learn"` trains the
        indexer. `no_memory` zeroes the Engram rows and `topk=0` leaves the window alone (diagnostics). With layer ids
        in `features`, the mean of the streams entering those layers [B,T,len*D] is a third result, which the DSpark
        draft module reads (deepseek-v41.md 5.1).
        """
        B, T = ids.shape
        st = self.state(ids, index, sparse, qat, image, no_memory, topk)
        e = self.embed(ids).to(ops.rows_of(ids.device))
        if image_rows is not None:
            e = e.clone()
            e[image] = image_rows.to(e.dtype)
        X = e.view(B * T, 1, -1).expand(-1, 4, -1).contiguous()
        pre = torch.zeros(B * T, 4, device=ids.device)
        pre[:, 0] = 1
        kept = []
        for L, layer in enumerate(self.layers):
            if layer.engram is not None:
                X = layer.engram(X, st)
            if L in features:
                kept.append(X.mean(1).view(B, T, -1))
            X, pre = layer(X, pre, st)
        st.close_target()
        h = (pre.to(X.dtype).unsqueeze(-1) * X).sum(1)
        out = self.norm(h).view(B, T, -1), st.index_loss
        return (*out, torch.cat(kept, -1)) if features else out

    def logits(self, h):
        return F.linear(h, self.head.weight.to(h.dtype)).float()

    def update_biases(self, rate):
        for layer in self.layers:
            layer.ffn.update_bias(rate)
