"""Writes the fixed evaluation sets:  python heldout.py [../fixtures/abilities]

One JSON object a line: `ability`, `name`, `request` (a chat-completion request without the answer), `prompt_ids` (what
the vendor's encoder and tokenizer.json give, an image being one id), `judge`, `answer` (a right answer in nano's own
words: text, or tool calls) and, where the model thinks, `reasoning`. The README says how `judge` decides. A fixed seed:
the same files every time, but for new facts or wordings.
"""

import base64
import io
import json
import random
import sys
from pathlib import Path

import pictures
import wordings
from abilities import World
from render import Renderer, thinks
from vision import span

HERE = Path(__file__).parent
MODES = ["disabled", "low", "high", "max"]


class Writer:
    def __init__(self, out):
        self.out, self.world, self.renderer = out, World(held=True), Renderer(HERE / "tokenizer.json", span)
        out.mkdir(parents=True, exist_ok=True)

    def item(self, ability, sample, judge):
        request = dict(sample.request, messages=sample.request["messages"][:-1])
        answer = sample.request["messages"][-1]
        images = iter(sample.images)
        for m in request["messages"]:
            for part in m["content"] if isinstance(m.get("content"), list) else ():
                if part["type"] == "image_url":
                    png = io.BytesIO()
                    next(images).save(png, "PNG")
                    part["image_url"] = dict(url="data:image/png;base64," + base64.b64encode(png.getvalue()).decode())
        item = dict(
            ability=ability,
            request=request,
            prompt_ids=self.renderer.prompt(request),
            judge=judge,
            answer=answer["content"] or answer["tool_calls"],
        )
        return item | (dict(reasoning=answer["reasoning_content"]) if thinks(request) else {})

    def write(self, name, items):
        for n, item in enumerate(items):
            item["name"] = f"{item['ability']}-{n}"
        text = "".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items)
        (self.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(name, len(items), "items", len(text.encode()) // 1000, "kB")

    def facts(self):
        """Every fact once but for some definitions, the held-out wordings in turn, without thinking."""
        r, items, world = random.Random(101), [], self.world
        chosen = [f for f in world.facts if f[0] != "meaning"] + [f for f in world.facts if f[0] == "meaning"][:60]
        for n, fact in enumerate(r.sample(chosen, 1000)):
            frames = wordings.wordings(fact[0])[1]
            sample = plain(world.fact_of, r, fact)
            sample.request["messages"][-2]["content"] = wordings.question(frames[n % len(frames)], fact[1])
            # The object says it all but where the subject could stand in its place, or "I" of "I don't know".
            whole = fact[0] == "symbol" or fact[0].startswith(("day", "month"))
            right = sample.request["messages"][-1]["content"].rstrip(".") if whole else fact[2]
            items.append(self.item(f"facts/{fact[0]}", sample, dict(kind="contains", all=[right])))
        self.write("facts", items)

    def unknown(self):
        r = random.Random(102)
        self.write(
            "unknown",
            [
                self.item("unknown", plain(self.world.unknown, r), dict(kind="contains", all=["don't know"]))
                for _ in range(100)
            ],
        )

    def sums(self):
        """Half of them without thinking, the other half with the three efforts."""
        r, items = random.Random(103), []
        for n in range(200):
            thinking = n % 2
            sample = mode(self.world.sums, r, thinking, MODES[1 + n // 2 % 3])
            answer = sample.request["messages"][-1]["content"]
            items.append(
                self.item(
                    "sums/thinking" if thinking else "sums/direct",
                    sample,
                    dict(kind="contains", all=[answer.split(" = ")[1]]),
                )
            )
        self.write("sums", items)

    def lists(self):
        r, items = random.Random(104), []
        for kind in World.LISTS:
            for _ in range(40):
                sample = plain(lambda r: self.world.lists(r, kind), r)
                answer = sample.request["messages"][-1]["content"]
                items.append(self.item(f"lists/{kind}", sample, dict(kind="exact", text=answer)))
        self.write("lists", items)

    def needle(self):
        """Codes in 250, 1,000 and 2,000 tokens. `far`: farther back than the window reaches through all layers."""
        r = random.Random(105)
        for name, tokens, n, codes, first in (
            ("needle-250", 250, 40, 4, None),
            ("needle-1000", 1000, 30, 6, None),
            ("needle-2000", 2000, 20, 6, None),
            ("needle-far", 1500, 20, 6, 0.3),
        ):
            items = []
            for _ in range(n):
                lines = int(tokens / 14)
                while True:
                    sample = self.world.needle(r, lines, codes, first)
                    size = len(self.renderer.prompt(dict(sample.request, messages=sample.request["messages"][:-1])))
                    if abs(size - tokens) < 0.04 * tokens:
                        break
                    lines += 1 if size < tokens else -1
                code = sample.request["messages"][-1]["content"].rstrip(".").split()[-1]
                items.append(self.item(name.replace("-", "/", 1), sample, dict(kind="contains", all=[code])))
            self.write(name, items)

    def tools(self):
        r, items, tools = random.Random(106), [], self.world.tool_samples
        for kind, n in ((tools.call, 60), (tools.loop, 30), (tools.no_need, 20), (tools.no_tool, 40)):
            for i in range(n):
                sample = kind(r) if kind != tools.no_tool else mode(kind, r, i % 2, "high")
                answer = sample.request["messages"][-1]
                if kind == tools.call:
                    call = answer["tool_calls"][0]["function"]
                    judge = dict(kind="call", name=call["name"], arguments=json.loads(call["arguments"]))
                elif kind == tools.no_tool:
                    judge = dict(kind="no_call")
                else:
                    judge = dict(kind="exact", text=answer["content"])
                items.append(self.item(f"tools/{kind.__name__}", sample, judge))
        self.write("tools", items)

    def chat(self):
        """Judged by reading, but for what a turn before has told."""
        r, items, chat = random.Random(107), [], self.world.chat_samples
        for kind, n in ((chat.plain, 10), (chat.back, 20), (chat.follow, 20), (chat.story, 10)):
            for _ in range(n):
                sample = plain(kind, r)
                answer = sample.request["messages"][-1]["content"]
                judge = dict(kind="read") if kind in (chat.plain, chat.story) else dict(kind="exact", text=answer)
                items.append(self.item(f"chat/{kind.__name__}", sample, judge))
        self.write("chat", items)

    def images(self):
        r = random.Random(108)
        for name, kinds in (("images", ("colour", "shape", "digit", "flag")), ("video", ("count", "change"))):
            items = []
            for kind in kinds:
                for _ in range(40):
                    sample = plain(lambda r: pictures.image_sample(self.world, r, kind), r)
                    answer = sample.request["messages"][-1]["content"]
                    # Of what changes the conclusion counts, not how the frames are described before it.
                    judge = dict(kind="exact", text=answer)
                    if kind == "change":
                        judge = dict(kind="contains", all=[answer.rstrip(".").split(". ")[1]])
                    items.append(self.item(f"{name}/{kind}", sample, judge))
            self.write(name, items)


def plain(sampler, r, *rest):
    return mode(sampler, r, False, None, *rest)


def mode(sampler, r, thinking, effort, *rest):
    """A sample in the mode that is wanted: drawn until it comes."""
    while True:
        sample = sampler(r, *rest)
        if thinks(sample.request) == bool(thinking):
            if thinking and effort:
                sample.request["reasoning_effort"] = effort
            return sample


def main():
    w = Writer(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "fixtures/abilities")
    for part in (w.facts, w.unknown, w.sums, w.lists, w.needle, w.tools, w.chat, w.images):
        part()


if __name__ == "__main__":
    main()
