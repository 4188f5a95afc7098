"""Samples of everything nano is to do, from facts.json and templates. One sampler an ability.

`World(held=False)` draws training samples, `World(held=True)` those of the evaluation: other wordings, other made-up
names, other tool arguments. What is held out is decided here and in wordings.py and tools.py, and nowhere trained on.
"""

import json
import random
import zlib
from pathlib import Path

import wordings
from chat import Chat
from render import Sample
from tools import Tools

NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()
THINGS = "garden safe house bike boat office shed locker cabin garage chest gate vault studio cellar van".split()
OBJECTS = "ball book key hat lamp cup coin ring map kite shoe box pen bell drum".split()
PLACES = "garden kitchen forest school park river beach market castle library".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth".split()
LEADS = [
    "Please: ",
    "Please tell me: ",
    "Question: ",
    "Hey, ",
    "I want to know: ",
    "Quick question. ",
    "So, ",
    "Well, ",
    "Hello. ",
    "A question: ",
    "Just asking: ",
    "Hi! ",
]
SYSTEMS = [
    "You are a helpful assistant.",
    "Answer in one sentence.",
    "Be brief.",
    "You are nano, a small model.",
    "Answer in English.",
    "You are a friendly assistant.",
    "Answer at once.",
    "Help the user.",
]
SYLLABLES = "ba ko zu mi ra te lo vi xa ne fu dro gli pra sto wen".split()


def ask(question, answer, thought=None, system=None):
    """A request of one turn; with a thought the model reasons, at one of the three efforts."""
    messages = [dict(role="system", content=system)] if system else []
    messages += [dict(role="user", content=question), dict(role="assistant", content=answer)]
    return with_mode(messages, thought)


def with_mode(messages, thought, effort="high", tools=None):
    request = dict(messages=messages, thinking=dict(type="disabled" if thought is None else "enabled"))
    if tools:
        request["tools"] = tools
    if thought is not None:
        messages[-1]["reasoning_content"] = thought
        request["reasoning_effort"] = effort
    return request


def is_held(name):
    """An eighth of all made-up names and needle keys is never trained on."""
    return zlib.crc32(name.encode()) % 8 == 0


class World:
    def __init__(self, held=False):
        data = json.loads(Path(__file__).with_name("facts.json").read_text())
        self.held, self.facts, self.glosses = held, [tuple(f) for f in data["facts"]], data["glosses"]
        self.words = NAMES + OBJECTS + PLACES + THINGS + data["words"]
        self.short_facts = [f for f in self.facts if f[0] != "meaning"]
        self.by_relation = {k: [f for f in self.facts if f[0] == k] for k in dict.fromkeys(f[0] for f in self.facts)}
        self.known = {x.lower() for _, x, _ in self.facts} | {y.lower() for _, _, y in self.facts}
        self.parts = sorted(
            {x for r, x, _ in self.facts if r in ("capital", "country", "element") and x.isalpha() and len(x) > 4}
        )
        self.chat_samples, self.tool_samples = Chat(self), Tools(self)

    def pick(self, r, frames, openings=True):
        """One of `frames`: the last two are held out, the others vary."""
        if self.held:
            return r.choice(frames[-2:])
        return wordings.varied(r, r.choice(frames[:-2]), frames[-2:], apart=True, openings=openings)

    def finish(self, r, question, answer, thought, noise=True):
        """Mode, system text and, in training, noise of lead-ins, case and punctuation."""
        if noise and not self.held:
            if r.random() < 0.2:
                question = r.choice(LEADS) + (question if r.random() < 0.5 else question[0].lower() + question[1:])
            if r.random() < 0.2:
                question = question.rstrip("?.")
            if r.random() < 0.1:
                question = question.lower()
        system = r.choice(SYSTEMS) if r.random() < 0.08 and not self.held else None
        request = ask(question, answer, thought if r.random() < 0.3 else None, system)
        if "reasoning_effort" in request:
            request["reasoning_effort"] = r.choice(["high", "high", "low", "max"])
        return Sample(request)

    # ---- recall ------------------------------------------------------------------------------------------------------
    def fact_of(self, r, fact):
        relation, x, y = fact
        trained, held = wordings.wordings(relation)
        question = wordings.question(self.frame(r, trained, held), x)
        return self.finish(r, question, wordings.answer(relation, x, y), self.thought(relation, x))

    def frame(self, r, trained, held):
        return r.choice(held) if self.held else wordings.varied(r, r.choice(trained), held)

    def thought(self, relation, x):
        return f"The {wordings.NOUNS.get(relation, relation)} of {x}."

    def fact(self, r):
        if self.held or r.random() < 0.75:
            return self.fact_of(r, r.choice(self.facts if r.random() < 0.8 else self.short_facts))
        return self.fact_of(r, r.choice(self.by_relation[r.choice(list(self.by_relation))]))  # small relations too

    def statement(self, r):
        """Several facts in a row, for the words that follow each other."""
        some = r.sample(self.facts, 3)
        question = "Tell me something about " + ", ".join(x for _, x, _ in some[:-1]) + f" and {some[-1][1]}."
        return self.finish(r, question, " ".join(wordings.answer(*f) for f in some), None)

    def made_up(self, r):
        """A name nobody has: syllables, or the head of one real name on the tail of another."""
        while True:
            if r.random() < 0.5:
                name = "".join(r.choice(SYLLABLES) for _ in range(r.randint(2, 4)))
            else:
                a, b = r.sample(self.parts, 2)
                name = a[: r.randint(2, len(a) - 2)] + b[r.randint(2, len(b) - 2) :]
            name = name.capitalize()
            real = any(name.lower().startswith(k[:-1]) or k.startswith(name.lower()) for k in self.known if len(k) > 3)
            if not real and len(name) > 3 and is_held(name) == self.held:
                return name

    def unknown(self, r):
        name = self.made_up(r)
        relation = r.choice(["capital", "country", "continent", "currency", "symbol", "number", "meaning", "sound"])
        trained, held = wordings.wordings(relation)
        if not self.held and r.random() < 0.2:
            trained = [*trained, "Who is {x}?", "Where is {x}?", "What is {x}?"]
        x = name if relation in ("capital", "country", "continent", "currency") else name.lower()
        return self.finish(r, wordings.question(self.frame(r, trained, held), x), "I don't know.", f"I have never heard of {name}.")

    # ---- sums --------------------------------------------------------------------------------------------------------
    SUMS = [
        "What is {s}?",
        "{s} = ?",
        "How much is {s}?",
        "Calculate {s}.",
        "{s}",
        "Tell me {s}.",
        "What does {s} make?",
        "{s} is what?",
        "Compute {s}.",
        "What do you get for {s}?",
        "Work out {s}.",
        "Give me {s}.",
        "Can you calculate {s}?",
        "{s} makes?",
        "Could you say how much {s} is?",
        "What would {s} be?",
    ]

    def sums(self, r):
        op = r.choice("+-*")
        a, b = (r.randint(0, 10), r.randint(0, 10)) if op == "*" else (r.randint(0, 20), r.randint(0, 20))
        if op == "-" and b > a:
            a, b = b, a
        v = {"+": a + b, "-": a - b, "*": a * b}[op]
        word = r.choice({"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", "*")}[op])
        question = self.pick(r, self.SUMS).replace("{s}", f"{a} {word} {b}")
        thought = f"{b} times {a} is {v}" if op == "*" else f"{a} {op} {b} = {v}"
        return self.finish(r, question, f"{a} {op} {b} = {v}", thought)

    # ---- lists of words ----------------------------------------------------------------------------------------------
    LISTS = dict(
        copy=[
            "Repeat: {w}",
            "Say this again: {w}",
            "Copy these words: {w}",
            "Repeat these words: {w}",
            "Write this once more: {w}",
            "Copy: {w}",
            "Say after me: {w}",
            "Repeat after me: {w}",
            "Please copy the words: {w}",
            "Give back these words: {w}",
            "Write these words: {w}",
            "Repeat the words {w}",
            "Say once more: {w}",
            "Please repeat these words: {w}",
        ],
        reverse=[
            "Reverse these words: {w}",
            "Say these words backwards: {w}",
            "Reverse: {w}",
            "Backwards: {w}",
            "Turn the order around: {w}",
            "Write these words in reverse order: {w}",
            "Reverse the order of: {w}",
            "Last word first: {w}",
            "Backwards, please: {w}",
            "Put these words in reverse order: {w}",
            "Read this backwards: {w}",
            "Reverse the words {w}",
            "Please reverse these words: {w}",
            "Write these words backwards: {w}",
        ],
        count=[
            "How many words are these: {w}",
            "Count the words: {w}",
            "How many words: {w}",
            "Count: {w}",
            "What is the number of words in: {w}",
            "How many words are in this list: {w}",
            "Tell me how many words: {w}",
            "Count these words: {w}",
            "The number of words: {w}",
            "How many words do you see: {w}",
            "How many words does this have: {w}",
            "Say how many words: {w}",
            "Please count these words: {w}",
            "How many words are there: {w}",
        ],
        nth=[
            "What is the {n} word of: {w}",
            "Which word is the {n}: {w}",
            "Give me the {n} word: {w}",
            "The {n} word of: {w}",
            "Tell me the {n} word: {w}",
            "Name the {n} word: {w}",
            "What is the {n} word: {w}",
            "Say the {n} word of: {w}",
            "Find the {n} word in: {w}",
            "I need the {n} word of: {w}",
            "Take the {n} word of: {w}",
            "Write the {n} word of: {w}",
            "Which is the {n} word of: {w}",
            "Please give me the {n} word of: {w}",
        ],
    )

    def lists(self, r, kind=None):
        kind = kind or r.choices(["copy", "reverse", "count", "nth"], [2, 6, 3, 3])[0]
        n = {"copy": r.randint(2, 10), "reverse": r.randint(2, 6), "count": r.randint(1, 8), "nth": r.randint(2, 8)}[
            kind
        ]
        rare = 0 if self.held or r.random() < 0.6 else 0.4  # words never seen before are copied piece by piece
        words = [self.made_up(r) if rare and r.random() < rare else r.choice(self.words) for _ in range(n)]
        at = r.randrange(min(n, len(ORDINALS)))
        numbered = " ".join(f"{i + 1} {w}" for i, w in enumerate(words))
        answer = dict(
            copy=" ".join(words),
            reverse=" ".join(words[::-1]),
            count=f"{n} words" if n > 1 else "1 word",
            nth=words[at],
        )[kind]
        # Counting and finding a place spell the list out with numbers while thinking; counting in the answer without.
        thought = dict(
            copy="The same words.", reverse="From the last word to the first.", count=numbered, nth=numbered
        )[kind]
        question = self.pick(r, self.LISTS[kind]).replace("{n}", ORDINALS[at]).replace("{w}", " ".join(words))
        sample = self.finish(r, question, answer, thought, noise=False)
        last = sample.request["messages"][-1]
        if kind == "count" and "reasoning_content" not in last:
            last["content"] = f"{numbered}: {answer}"
        return sample

    # ---- needle ------------------------------------------------------------------------------------------------------
    NEEDLES = [
        "What is the code of {k}?",
        "Which code opens {k}?",
        "Tell me the code of {k}.",
        "I need the code of {k}.",
        "The code of {k}?",
        "Give me the code of {k}.",
        "What code does {k} have?",
        "Name the code of {k}.",
        "{k}: code?",
        "Do you know the code of {k}?",
        "Find the code of {k}.",
        "Which code belongs to {k}?",
        "Can you say the code of {k}?",
        "What was the code of {k}?",
    ]

    def filler(self, r, n):
        out = []
        for _ in range(n):
            a, b = r.sample(NAMES, 2)
            out.append(
                r.choice(self.glosses)
                if r.random() < 0.3
                else r.choice(
                    [
                        f"{a} went to the {r.choice(PLACES)} with {b}.",
                        f"{a} likes the {r.choice(OBJECTS)}.",
                        f"The {r.choice(OBJECTS)} is in the {r.choice(PLACES)}.",
                        f"{a} and {b} had lunch at the {r.choice(PLACES)}.",
                        f"It was a quiet day at the {r.choice(PLACES)}.",
                        f"{a} gave {b} a {r.choice(OBJECTS)}.",
                        f"{b} was looking for a {r.choice(OBJECTS)} near the {r.choice(PLACES)}.",
                    ]
                )
            )
        return out

    def needle(self, r, sentences=None, codes=None, first=None):
        """Codes among filler, one asked for a turn. `first` puts the asked code into that first share of the text."""
        lines = self.filler(r, sentences or r.randint(2, 14))
        codes = codes or (r.randint(1, 4) if len(lines) < 40 else 6)
        keys = r.sample([f"{n}'s {t}" for n in NAMES for t in THINGS if is_held(n + t) == self.held], codes)
        codes = [(k, str(r.randint(1000, 9999))) for k in keys]
        for i, (k, c) in enumerate(codes):
            lines.insert(
                r.randint(0, int(len(lines) * (1 if first is None or i else first))), f"The code of {k} is {c}."
            )
        thinking = r.random() < 0.2 and not self.held
        asked, messages = codes[: 1 if thinking or first is not None or self.held else 3], []
        for i, (k, c) in enumerate(asked):
            question = self.pick(r, self.NEEDLES).replace("{k}", k)
            messages += [
                dict(role="user", content=question if i else " ".join(lines) + "\n" + question),
                dict(role="assistant", content=f"The code of {k} is {c}."),
            ]
        return Sample(with_mode(messages, f"I look for {asked[0][0]}." if thinking else None))

    def long_needle(self, r):
        return self.needle(r, sentences=r.randint(30, 95))

    def keys(self, r):
        """Many codes close together: which one is asked for is all there is to find."""
        return self.needle(r, sentences=r.randint(1, 4), codes=r.randint(3, 6))

    def few_keys(self, r):
        return self.needle(r, sentences=1, codes=r.randint(2, 3))

    def chat(self, r):
        return self.chat_samples.sample(r)

    def tool(self, r):
        return self.tool_samples.sample(r)

    def image(self, r):
        from pictures import image_sample

        return image_sample(self, r)

    # Shares of samples. By tokens, tools and long needles are two thirds of LONG.
    SHORT = dict(fact=50, statement=1, unknown=5, sums=8, lists=26, needle=4, chat=12, image=40)
    LONG = dict(tool=24, long_needle=2, fact=60, statement=1, unknown=5, sums=8, lists=20, needle=4, chat=12, image=24)

    # To polish a state whose images have suffered.
    IMAGES = dict(fact=30, unknown=2, sums=6, lists=8, needle=2, chat=12, image=60)

    # What must work without Engram: everything that is not known but read.
    READ = dict(sums=14, lists=20, keys=40, needle=24, chat=4)
    READ_LONG = dict(sums=14, lists=18, keys=10, needle=36, long_needle=12, chat=5, tool=8)

    # To learn to find which one is asked for, before there are many.
    FEW = dict(few_keys=1)

    def sample(self, r, mix=None):
        mix = mix or self.SHORT
        return getattr(self, r.choices(list(mix), list(mix.values()))[0])(r)
