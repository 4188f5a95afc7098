"""Vision tower and aligner of V4.1 (deepseek-v41.md 6), with the released names."""

import torch
from torch import nn
from torch.nn import functional as F

P, R = 14, 3  # patch, downsample


class Block(nn.Module):
    def __init__(self, D, H, I):
        super().__init__()
        self.H = H
        self.norm1, self.norm2 = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
        self.attn = nn.ModuleDict(dict(wqkv=nn.Linear(D, 3 * D), wo=nn.Linear(D, D)))
        self.mlp = nn.ModuleDict(dict(w1=nn.Linear(D, 2 * I, bias=False), w2=nn.Linear(I, D, bias=False)))

    def forward(self, x, cs):
        N, T, D = x.shape
        q, k, v = self.attn.wqkv(self.norm1(x)).view(N, T, 3, self.H, -1).permute(2, 0, 3, 1, 4)

        def turn(u):
            a, b = u.chunk(2, -1)
            return torch.cat((a * cs[0] - b * cs[1], b * cs[0] + a * cs[1]), -1)

        o = F.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2).reshape(N, T, D)
        x = x + self.attn.wo(o)
        g, u = self.mlp.w1(self.norm2(x)).chunk(2, -1)
        return x + self.mlp.w2(F.silu(g) * u)


class Vision(nn.Module):
    """Images of one common size [N,3,h,w] -> image tokens [N, lh*lw, hidden of the text model]."""

    def __init__(self, cfg, out):
        super().__init__()
        D, H, I, layers = (
            cfg[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
        )
        self.vision = nn.ModuleDict(
            dict(
                patch_embed=nn.ModuleDict(dict(proj=nn.Linear(3 * P * P, D))),
                blocks=nn.ModuleList(Block(D, H, I) for _ in range(layers)),
                norm=nn.RMSNorm(D, eps=1e-6),
            )
        )
        self.aligner = nn.ModuleDict(dict(w1=nn.Linear(D * R * R, out), w2=nn.Linear(out, out)))
        self.image_start, self.image_end, self.image_newline = (nn.Parameter(0.5 * torch.randn(out)) for _ in range(3))
        self.d = D // H

    def forward(self, images):
        N, _, h, w = images.shape
        gh, gw = h // P, w // P
        x = images.view(N, 3, gh, P, gw, P).permute(0, 2, 4, 1, 3, 5).reshape(N, gh * gw, -1)
        x = self.vision.patch_embed.proj(x)
        inv = 10000 ** (-torch.arange(0, self.d // 2, 2, device=x.device).float() / (self.d // 2))
        grid = (
            torch.stack(
                torch.meshgrid(torch.arange(gh, device=x.device), torch.arange(gw, device=x.device), indexing="ij"), -1
            )
            .view(-1, 2)
            .float()
        )
        angle = (grid.unsqueeze(-1) * inv).flatten(1)
        for block in self.vision.blocks:
            x = block(x, (angle.cos(), angle.sin()))
        x = self.vision.norm(x).transpose(1, 2).view(N, -1, gh, gw)
        x = F.pad(x, (0, -gw % R, 0, -gh % R))
        x = F.unfold(x, R, stride=R).transpose(1, 2)  # channel-major 3x3 cells, row-major
        x = self.aligner.w2(F.gelu(self.aligner.w1(x)))
        lh, lw = -(-gh // R), -(-gw // R)
        rows = torch.cat((x.view(N, lh, lw, -1), self.image_newline.expand(N, lh, 1, -1)), 2).flatten(1, 2)
        return torch.cat((self.image_start.expand(N, 1, -1), rows, self.image_end.expand(N, 1, -1)), 1)


def span(h, w):
    """Positions of an image of h x w pixels, delimiters included."""
    lh, lw = -(-h // P // R), -(-w // P // R)
    return lh * (lw + 1) + 2
