"""CSA2 attention (deepseek-v41.md 3.6 to 3.9): window, compressed entries, indexer, candidate blocks."""

import torch
from torch import nn
from torch.nn import functional as F

import ops
from blocks import Linear, Norm, rope
from quant import fp8_weight, round_fp8, round_mxfp4, round_nvfp4


class Compressor(nn.Module):
    """x [B,T,D] -> latents [B, T // ratio, d]."""

    def __init__(self, cfg, ratio):
        super().__init__()
        self.wkv = Linear(cfg.hidden_size, cfg.head_dim, "bf16")
        if ratio > 1:
            self.wgate = Linear(cfg.hidden_size, cfg.head_dim, "bf16", 0.5)
        self.norm, self.ratio = Norm(cfg.head_dim), ratio

    def forward(self, x):
        v = self.wkv(x)
        if self.ratio > 1:
            g = self.wgate(x).unflatten(1, (-1, self.ratio)).float().softmax(2)
            v = (g * v.unflatten(1, (-1, self.ratio)).float()).sum(2).to(x.dtype)
        return self.norm(v)


class Indexer(nn.Module):
    def __init__(self, cfg, owns):
        super().__init__()
        self.n, self.d = cfg.index_n_heads, cfg.index_head_dim
        self.wq_b = Linear(cfg.q_lora_rank, self.n * self.d)
        self.weights_proj = Linear(cfg.hidden_size, self.n, "bf16")
        if owns:
            self.wk, self.k_norm = Linear(cfg.head_dim, self.d, "bf16"), Norm(self.d)

    def keys(self, latent, cs, qat):
        k = rope(self.k_norm(self.wk(latent)), cs)
        return round_mxfp4(k) if qat else k

    def scores(self, x, qr, keys, cs, qat):
        """[B,T,M] float32. Inputs come detached: only the indexer learns from them."""
        B, T = x.shape[:2]
        q = rope(self.wq_b(qr, qat).view(B, T, self.n, self.d), cs)
        q = round_mxfp4(q) if qat else q
        w = self.weights_proj(x).float() * (self.d**-0.5 * self.n**-0.5)
        dots = torch.bmm(q.reshape(B, T * self.n, self.d), keys.transpose(1, 2)).view(B, T, self.n, -1)
        return (dots.relu_().float() * w.unsqueeze(-1)).sum(2)


class Attention(nn.Module):
    def __init__(self, cfg, L):
        super().__init__()
        D, H, d = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim
        self.cfg, self.L, self.ratio = cfg, L, cfg.compress_ratios[L]
        self.owner, self.selector = L in cfg.kv_source_layer_ids, L in cfg.index_source_layer_ids
        self.wq_a, self.q_norm = Linear(D, cfg.q_lora_rank), Norm(cfg.q_lora_rank)
        self.wq_b = Linear(cfg.q_lora_rank, H * d, gain=1.5)
        self.wkv, self.kv_norm = Linear(D, d), Norm(d)
        self.wo_a = Linear(H * d // cfg.o_groups, cfg.o_groups * cfg.o_lora_rank)
        self.wo_b = Linear(cfg.o_groups * cfg.o_lora_rank, D, gain=0.5)
        self.attn_sink = nn.Parameter(torch.zeros(H))
        if self.owner:
            self.compressor = Compressor(cfg, self.ratio)
        if self.selector:
            self.indexer = Indexer(cfg, self.owner)

    def forward(self, x, st):
        cfg, qat = self.cfg, st.qat
        B, T, _ = x.shape
        H, d, G = cfg.num_attention_heads, cfg.head_dim, cfg.o_groups
        cs = st.rope[self.ratio > 0]
        qr = self.q_norm(self.wq_a(x, qat))
        q = rope(self.wq_b(qr, qat).view(B, T, H, d), cs)
        kv = rope(self.kv_norm(self.wkv(x, qat)), cs)
        kv = round_fp8(kv) if qat else kv
        if self.owner:
            self.publish(x, cs, st)
        if self.selector:
            self.index(x, qr, cs, st)
        comp, mask = (st.comp, st.mask) if self.ratio else (None, None)
        learn = st.index == "learn"
        o, target = ops.sink_attention(q, kv, comp, st.window_mask, mask, self.attn_sink, cfg.sliding_window, learn)
        if self.ratio and learn:
            st.add_target(target)
        o = rope(o, cs, inverse=True).reshape(B * T, G, H * d // G)
        wa = fp8_weight(self.wo_a.weight) if qat else self.wo_a.weight
        t = torch.bmm(o.transpose(0, 1), wa.to(o.dtype).view(G, cfg.o_lora_rank, -1).transpose(1, 2)).transpose(0, 1)
        return self.wo_b(t.reshape(B, T, -1), qat)

    def publish(self, x, cs, st):
        """The compressed entries and index keys that this layer owns, for itself and the layers after it (3.7)."""
        latent = self.compressor(x)
        cs_c = tuple(v[:: self.ratio][: latent.shape[1]].contiguous() for v in cs)
        st.comp = rope(latent, cs_c)
        st.comp = round_nvfp4(st.comp) if st.qat else st.comp
        entries = torch.arange(latent.shape[1], device=x.device)
        st.visible = (st.pos.unsqueeze(1) + 1) // self.ratio > entries
        st.candidates = None
        if st.index:
            st.keys = self.indexer.keys(latent.detach(), cs_c, st.qat)

    def index(self, x, qr, cs, st):
        """Which entries this layer and those that reuse it may attend to (3.8)."""
        st.close_target()
        st.mask = st.visible.unsqueeze(0).to(torch.uint8)
        if not st.index:
            return
        with torch.set_grad_enabled(st.index == "learn"):
            s = self.indexer.scores(x.detach(), qr.detach(), st.keys, cs, st.qat)
            s = s.masked_fill(~st.visible, -torch.inf)
        if st.index == "learn":
            st.open_target(s)
        if st.sparse:
            st.mask = self.select(s.detach(), st).to(torch.uint8)

    def select(self, s, st):
        cfg, bs = self.cfg, self.cfg.candidate_block_size
        if self.L == cfg.candidate_source_layer_id:
            blocks = F.pad(s, (0, -s.shape[-1] % bs), value=-torch.inf).unflatten(-1, (-1, bs)).amax(-1)
            newest = ((st.pos + 1) // self.ratio - 1) // bs
            blocks = blocks.masked_fill(
                torch.arange(blocks.shape[-1], device=s.device) == newest.unsqueeze(1), torch.inf
            )
            top = blocks.topk(min(cfg.candidate_topk_blocks, blocks.shape[-1]), -1)
            keep = torch.zeros_like(blocks, dtype=torch.bool).scatter(-1, top.indices, top.values > -torch.inf)
            st.candidates = keep.repeat_interleave(bs, -1)[..., : s.shape[-1]] & st.visible
        elif st.candidates is not None:
            s = s.masked_fill(~st.candidates, -torch.inf)
        top = s.topk(min(st.topk, s.shape[-1]), -1)
        return torch.zeros_like(s, dtype=torch.bool).scatter(-1, top.indices, top.values > -torch.inf)
