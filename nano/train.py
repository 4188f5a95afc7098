"""Trains nano:  python train.py RUN --minutes 150 [--resume state.safetensors | --warm CHECKPOINT]

One run is one session's work: warm-up, dense attention on 256 tokens (the indexer learns from it every few steps),
sparse selection on 1,024 tokens and more (tools, long needles), then the release's roundings while the rate falls.
RUN/log.jsonl is the loss log, RUN/state.safetensors the last state, written every few minutes and when the run ends or
is told to (SIGTERM). Phases go by time, so that a run ends when it should on a machine of any speed; time in which the
process is stopped (SIGSTOP) does not count.
"""

import argparse
import json
import signal
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

import ops
import state
from abilities import World
from evaluate import quick
from optim import Optimisers
from render import Renderer
from stream import Stream
from vision import span

HERE = Path(__file__).parent


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--resume", type=Path, help="a state file to go on from")
    p.add_argument("--warm", type=Path, help="a checkpoint in the released format with another tokenizer to start from")
    p.add_argument("--dense", type=float, default=0.6, help="share of the run with dense attention")
    p.add_argument("--rounded", type=float, default=0.8, help="share of the run before roundings are on")
    p.add_argument("--decay", type=float, default=0.4, help="share of the run before the rate falls")
    p.add_argument("--tokens", type=int, default=8192, help="a step")
    p.add_argument(
        "--long", type=int, default=1024, help="tokens a long row; in the sparse phase a quarter of them twice that"
    )
    p.add_argument("--short", default="SHORT", help="mixture of short rows, a name of abilities.py's")
    p.add_argument("--read", type=int, default=2, help="of seven steps, how many go without Engram")
    p.add_argument("--reading", default="READ", help="mixture of their short rows")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--tower-lr", type=float, default=4e-3, help="of the vision tower; a tower that sees needs a tenth")
    p.add_argument("--labelled", type=int, default=64, help="images a step that teach the tower from labels")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0, help="of the samples, at a first run")
    p.add_argument("--save", type=float, default=8, help="minutes between states")
    p.add_argument("--eval", type=float, default=20, help="minutes between evaluations")
    return p.parse_args()


class Run:
    def __init__(self, a):
        self.a, self.device, self.stop = a, torch.device(a.device), False
        torch.set_num_threads(a.threads)
        a.out.mkdir(parents=True, exist_ok=True)
        path = HERE / "tokenizer.json"
        self.renderer = Renderer(path, span)
        torch.manual_seed(a.seed)
        self.net, self.tower = state.build(Tokenizer.from_file(str(path)))
        self.progress = dict(step=0, tokens=0, seed=a.seed)
        if a.resume:
            self.progress = state.load(a.resume, self.net, self.tower)
        elif a.warm:
            import warm

            warm.start(a.warm, self.net, self.renderer)
        self.net.to(self.device).train()
        self.tower.to(self.device).train()
        self.stream = Stream(self.renderer, self.progress["seed"])
        self.held = World(held=True)
        self.optimisers = Optimisers(self.net, self.tower, a.lr, a.tower_lr, ops.rows_of(self.device))
        self.log = (a.out / "log.jsonl").open("a")
        self.begin, self.first = time.time(), self.progress["step"]

    def say(self, **entry):
        self.log.write(json.dumps(entry) + "\n")
        self.log.flush()

    def save(self):
        state.save(self.a.out / "state.safetensors", self.net, self.tower, self.progress)

    def loss(self, T, mix, **how):
        """One batch of rows of T tokens: (text loss, index loss, label loss)."""
        step = self.progress["step"]
        batch = self.stream.batch(step, max(1, self.a.tokens // T), T, mix).to(self.device)
        rows = None if batch.pixels is None else self.tower(batch.pixels).flatten(0, 1)
        h, index = self.net(batch.ids, image=batch.image, image_rows=rows, **how)
        at = (batch.targets.flatten() >= 0).nonzero().squeeze(1)
        loss = ops.head_loss(h.flatten(0, 1)[at], self.net.head.weight, batch.targets.flatten()[at])
        images, labels = self.stream.labelled(step, self.a.labelled)
        return loss, index, self.tower.label_loss(images.to(self.device), labels.to(self.device)), batch.ids.numel()

    def step(self, done):
        a, step = self.a, self.progress["step"]
        how = dict(sparse=done > a.dense, qat=done > a.rounded)
        # Short rows go on to the end: long ones alone would take from pictures and lists what they give to tools.
        long = step % 2 == 1
        T = 256 if not long else a.long * 2 if how["sparse"] and step % 8 == 7 else a.long
        mix = World.LONG if long else getattr(World, a.short)
        how["index"] = "learn" if step % (11 if long else 8) == 0 else None  # such a step takes 2.5 times as long
        if step * 3 % 7 < a.read:  # facts are Engram's; what stands in the text must do without
            mix, how["no_memory"] = World.READ_LONG if T > 256 else getattr(World, a.reading), True
        loss, index, label, tokens = self.loss(T, mix, **how)
        (loss + index + 0.3 * label).backward()
        decay = min(1, max(0.02, (1 - done) / (1 - a.decay)))
        self.optimisers.step(min(1, (step - self.first + 1) / 40) * decay)
        self.net.update_biases(1e-3 if done < 0.85 else 0)
        self.progress["step"] += 1
        self.progress["tokens"] += tokens
        return dict(
            loss=loss.item(), index=index.item() if how["index"] else None, label=label.item(), T=T, qat=how["qat"]
        )

    def train(self):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        a, mean, before = self.a, {}, self.progress["tokens"]
        saved = evaluated = self.begin
        how = dict(sparse=False, qat=False)
        busy = 0  # seconds of training: a step that took minutes was stopped in between
        while (done := busy / (60 * a.minutes)) < 1 and not self.stop:
            start = time.time()
            got = self.step(done)
            busy += min(time.time() - start, 60)
            how = dict(sparse=done > a.dense, qat=got["qat"])
            for k in ("loss", "index", "label"):
                if got[k] is not None:
                    mean[k] = 0.9 * mean.get(k, got[k]) + 0.1 * got[k]
            if self.progress["step"] % 10 == 0:
                self.say(
                    **self.progress,
                    **{k: round(v, 4) for k, v in mean.items()},
                    T=got["T"],
                    **how,
                    seconds=round(busy),
                    rate=round((self.progress["tokens"] - before) / busy),
                )
            if time.time() - saved > 60 * a.save:
                self.save()
                saved = time.time()
            if time.time() - evaluated > 60 * a.eval:
                self.say(evaluation=quick(self.net, self.tower, self.held, self.renderer, 24, **how), **how)
                evaluated = time.time()
        self.save()
        self.say(**self.progress, end="told to" if self.stop else "time")


if __name__ == "__main__":
    Run(arguments()).train()
