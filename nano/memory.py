"""Engram: rows of a hashed n-gram table, gated into the streams (deepseek-v41.md 3.10)."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from blocks import Linear, rms
from quant import round_fp8


def primes_for(cfg):
    """Table sizes: one list of (max n-gram - 1) * heads primes per Engram layer (3.10 b)."""
    seen, out = set(), []
    prime = lambda n: n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
    for _ in cfg.engram_layer_ids:
        row = []
        for _ in range(cfg.engram_max_ngram_size - 1):
            c = cfg.engram_vocab_size - 1
            for _ in range(cfg.engram_n_heads):
                c += 1
                while not prime(c) or c in seen:
                    c += 1
                seen.add(c)
                row.append(c)
        out.append(row)
    return out


class Engram(nn.Module):
    def __init__(self, cfg, L):
        super().__init__()
        primes = torch.tensor(primes_for(cfg)[cfg.engram_layer_ids.index(L)])
        bound = (2**63 - 1) // cfg.engram_compressed_vocab_size // 2
        draws = np.random.default_rng(10007 * L).integers(0, bound, 4, dtype=np.int64)
        self.register_buffer("primes", primes, persistent=False)
        self.register_buffer("offsets", primes.cumsum(0) - primes, persistent=False)
        self.register_buffer("mult", torch.from_numpy(draws * 2 + 1), persistent=False)
        D, self.cfg = cfg.hidden_size, cfg
        self.embed = nn.Embedding(int(primes.sum()), cfg.engram_head_dim)
        nn.init.normal_(self.embed.weight, std=0.5)
        self.wkv = Linear(len(primes) * cfg.engram_head_dim, 5 * D)
        with torch.no_grad():
            self.wkv.weight[4 * D :] *= 0.2
        self.q_weight, self.k_weight = nn.Parameter(torch.ones(4, D)), nn.Parameter(torch.ones(4, D))

    def rows(self, classes, image):
        """classes [B,T], image [B,T] bool or None -> table rows [B,T,columns]."""
        n, heads, pad = self.cfg.engram_max_ngram_size, self.cfg.engram_n_heads, self.cfg.engram_pad_class
        blocked = image if image is not None else torch.zeros_like(classes, dtype=torch.bool)
        h, dead, out = None, blocked, []
        for s in range(n):
            t = F.pad(classes, (s, 0), value=pad)[:, : classes.shape[1]]
            if s:
                dead = dead | F.pad(blocked, (s, 0), value=True)[:, : classes.shape[1]]
            t = torch.where(dead, pad, t) * self.mult[s]
            h = t if h is None else h ^ t
            if s:
                c = slice((s - 1) * heads, s * heads)
                out.append(h.unsqueeze(-1) % self.primes[c] + self.offsets[c])
        return torch.cat(out, -1)

    def forward(self, X, st):
        """X [B*T,4,D]; `st.no_memory` reads zeros, the diagnostic of the evaluation."""
        B, T = st.classes.shape
        e = self.embed(self.rows(st.classes, st.image))
        e = torch.zeros_like(e) if st.no_memory else e
        e = (round_fp8(e) if st.qat else e).flatten(2).to(X.dtype)
        D = X.shape[-1]
        kvv = self.wkv(e, st.qat).view(B * T, 5, D)
        K, v = kvv[:, :4], kvv[:, 4:]
        d = (rms(X) * (self.q_weight * self.k_weight).to(X.dtype) * rms(K)).float().sum(-1) * D**-0.5
        gate = torch.sigmoid(torch.copysign(d.abs().clamp_min(1e-6).sqrt(), d))
        if st.image is not None:
            gate = gate.masked_fill(st.image.view(-1, 1), 0)
        return X + gate.to(X.dtype).unsqueeze(-1) * v
