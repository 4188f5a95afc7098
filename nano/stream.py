"""Packed training batches. A batch depends on seed, step and shape alone, so a resumed run goes on where it was."""

import random

import torch

import pictures
from abilities import World


class Batch:
    """ids, targets [B,T] (-1: not learned); `pixels` [N,3,84,84] and `image` [B,T], their positions, or None."""

    def __init__(self, ids, targets, images, image_id):
        self.ids, self.targets = ids[:, :-1].contiguous(), targets[:, 1:].contiguous()
        self.image = (self.ids == image_id) if images else None
        self.pixels = torch.stack([pictures.pixels(i) for i in images]) if images else None

    def to(self, device):
        for name in ("ids", "targets", "image", "pixels"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))
        return self


class Stream:
    def __init__(self, renderer, seed):
        self.world, self.renderer, self.seed = World(), renderer, seed

    def batch(self, step, B, T, mix):
        """Every row begins with a fresh sample; text that does not fit is cut, a sample with images is left out."""
        r = random.Random(f"{self.seed}/{step}/{B}x{T}")
        ids, targets, images = torch.full((B, T + 1), 2), torch.full((B, T + 1), -1), []
        for b in range(B):
            at = 0
            while at < T + 1:
                sample = self.world.sample(r, mix)
                i, learn = self.renderer.sample(sample)
                if sample.images and at + len(i) > T:
                    continue
                n = min(len(i), T + 1 - at)
                row = torch.tensor(i[:n])
                ids[b, at : at + n] = row
                targets[b, at : at + n] = torch.where(torch.tensor(learn[:n]), row, -1)
                images += sample.images
                at += n
        return Batch(ids, targets, images, self.renderer.image_id)

    def labelled(self, step, n):
        """Drawn images [n,3,84,84] and their labels [n, kinds], for the tower alone."""
        r = random.Random(f"{self.seed}/{step}/labels")
        pairs = [pictures.labelled(r) for _ in range(n)]
        return torch.stack([pictures.pixels(i) for i, _ in pairs]), torch.tensor([l for _, l in pairs])
