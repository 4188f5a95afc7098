"""Drawn images, frames of videos, and the samples about them."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from render import Sample

SIZE = 84  # pixels a side: 2 x 2 cells of 3 x 3 patches of 14, so 8 positions and no resizing
COLOURS = dict(
    red=(220, 40, 40),
    green=(40, 170, 60),
    blue=(40, 70, 220),
    yellow=(240, 220, 50),
    black=(20, 20, 20),
    white=(245, 245, 245),
    orange=(250, 140, 30),
    purple=(140, 50, 170),
)
SHAPES = ("circle", "square", "triangle", "cross")
FLAGS = {  # v: vertical stripes, h: horizontal, d: disc on a field, c: Nordic cross on a field, x: centred cross
    "France": ("v", "blue white red"),
    "Italy": ("v", "green white red"),
    "Ireland": ("v", "green white orange"),
    "Belgium": ("v", "black yellow red"),
    "Romania": ("v", "blue yellow red"),
    "Nigeria": ("v", "green white green"),
    "Peru": ("v", "red white red"),
    "Germany": ("h", "black red yellow"),
    "Netherlands": ("h", "red white blue"),
    "Russia": ("h", "white blue red"),
    "Hungary": ("h", "red white green"),
    "Bulgaria": ("h", "white green red"),
    "Austria": ("h", "red white red"),
    "Poland": ("h", "white red"),
    "Ukraine": ("h", "blue yellow"),
    "Japan": ("d", "white red"),
    "Bangladesh": ("d", "green red"),
    "Sweden": ("c", "blue yellow"),
    "Denmark": ("c", "red white"),
    "Switzerland": ("x", "red white"),
}
SHARES = dict(  # of the image samples; background, place and frame are what describing a change is made of
    colour=1, background=1, shape=5, digit=4, flag=4, place=2, describe=5, frame=4, count=1, change=14
)
PLACES = {(42, 42): "in the middle"} | {
    (x, y): f"at the {v} {h}" for x, h in ((22, "left"), (62, "right")) for y, v in ((22, "top"), (62, "bottom"))
}
CHANGES = ("colour", "shape", "background", "place", "nothing")
OFTEN = (*CHANGES, "background", "nothing", "nothing")  # in training: that all is equal is the hardest to see
NUMBERS = "no one two three four five six seven eight".split()

ASKS = dict(  # the last two are held out
    colour=[
        "What colour is the shape?",
        "Which colour does the shape have?",
        "What colour is it?",
        "Name the colour of the shape.",
        "Colour?",
        "The shape has which colour?",
        "What colour has the shape?",
        "The shape is of which colour?",
        "In what colour is it drawn?",
        "Which colour do you see the shape in?",
        "Tell me the colour of the shape.",
        "What is the colour of the shape?",
        "Which colour is it?",
        "Say the colour of the shape.",
        "Could you tell me the colour of the shape?",
        "In which colour is the shape?",
    ],
    shape=[
        "What shape is this?",
        "Which shape do you see?",
        "Name the shape.",
        "Shape?",
        "What is the shape?",
        "Which shape is it?",
        "Tell me the shape.",
        "What shape is in the image?",
        "What shape do you see?",
        "Is it a circle or something else?",
        "Could you name the shape?",
        "Which shape is in the picture?",
    ],
    digit=[
        "Which digit is this?",
        "Read the digit.",
        "What digit is it?",
        "Which number do you see?",
        "Digit?",
        "Tell me the digit.",
        "What number is this?",
        "Name the digit.",
        "What digit do you see?",
        "Which digit is in the image?",
        "Could you read the digit?",
        "Which number is in the picture?",
    ],
    flag=[
        "Which country has this flag?",
        "Whose flag is this?",
        "Name the country of this flag.",
        "Flag of which country?",
        "What flag is this?",
        "Which flag do you see?",
        "Tell me whose flag this is.",
        "This is the flag of?",
        "To which country does this flag belong?",
        "Which flag is it?",
        "Could you say whose flag this is?",
        "The flag of which country is this?",
    ],
    background=[
        "What colour is the background?",
        "Which colour does the background have?",
        "The background has which colour?",
        "Name the colour of the background.",
        "Background colour?",
        "Tell me the colour of the background.",
        "What is the colour of the background?",
        "What colour is behind the shape?",
        "Could you name the colour of the background?",
        "What is behind the shape?",
    ],
    place=[
        "Where is the shape?",
        "In which place is it?",
        "Where do you see the shape?",
        "The shape is where?",
        "Tell me where the shape is.",
        "Where is it?",
        "Place of the shape?",
        "Say where the shape is.",
        "Could you say where it is?",
        "In which part of the image is the shape?",
    ],
    frame=[
        "What is in the {n} frame?",
        "Describe the {n} frame.",
        "What do you see in the {n} frame?",
        "The {n} frame shows what?",
        "Tell me what the {n} frame shows.",
        "{n} frame?",
        "Say what is in the {n} frame.",
        "Could you describe the {n} frame?",
        "Which shape is in the {n} frame?",
    ],
    describe=[
        "What do you see?",
        "Describe the image.",
        "What is in the image?",
        "Describe this.",
        "What is this?",
        "Tell me what you see.",
        "What does the image show?",
        "Say what you see.",
        "Could you describe the picture?",
        "What can be seen here?",
    ],
    count=[
        "How many frames are there?",
        "How many frames does the video have?",
        "Count the frames.",
        "How many images are there?",
        "Frames?",
        "How many pictures do you see?",
        "Tell me how many frames there are.",
        "What is the number of frames?",
        "How many images do you see?",
        "Number of frames?",
        "Could you count the frames?",
        "How many frames can you see?",
    ],
    change=[
        "What changes?",
        "What changes in the video?",
        "What is different at the end?",
        "What happens?",
        "Which thing changes?",
        "What changes from the first frame to the last?",
        "Tell me what changes.",
        "What has changed at the end?",
        "Describe the change.",
        "Say what changes.",
        "Could you describe the change?",
        "Could you name the difference?",
        "Can you see any change?",
        "Does anything change?",
        "Could you say what changes?",
        "What becomes different?",
    ],
)


def _colour(r, name):
    return tuple(max(0, min(255, v + r.randint(-12, 12))) for v in COLOURS[name])


def draw(r, shape, colour, background, at=None, scale=None, digit=None):
    """A shape or a digit of one colour on another."""
    im = Image.new("RGB", (SIZE, SIZE), _colour(r, background))
    d, c, s = ImageDraw.Draw(im), _colour(r, colour), scale or r.randint(15, 26)
    x, y = at or (r.randint(s + 2, SIZE - s - 2), r.randint(s + 2, SIZE - s - 2))
    if digit is not None:
        d.text((x, y), str(digit), fill=c, font=ImageFont.load_default(size=2 * s + 8), anchor="mm")
    elif shape == "circle":
        d.ellipse((x - s, y - s, x + s, y + s), fill=c)
    elif shape == "square":
        d.rectangle((x - s, y - s, x + s, y + s), fill=c)
    elif shape == "triangle":
        d.polygon([(x, y - s), (x - s, y + s), (x + s, y + s)], fill=c)
    else:
        t = max(3, s // 3)
        d.rectangle((x - s, y - t, x + s, y + t), fill=c)
        d.rectangle((x - t, y - s, x + t, y + s), fill=c)
    return im


def flag(r, country):
    """The flag over the whole image, its bands moved a little."""
    kind, names = FLAGS[country]
    colours = [_colour(r, c) for c in names.split()]
    im = Image.new("RGB", (SIZE, SIZE), colours[0])
    d, j = ImageDraw.Draw(im), r.randint(-3, 3)
    if kind in "vh":
        for i, c in enumerate(colours):
            a, b = i * SIZE // len(colours) + j * (i > 0), (i + 1) * SIZE // len(colours) + j
            d.rectangle((a, 0, b, SIZE) if kind == "v" else (0, a, SIZE, b), fill=c)
    elif kind == "d":
        d.ellipse((20 + j, 20, 64 + j, 64), fill=colours[1])
    elif kind == "c":
        d.rectangle((24 + j, 0, 36 + j, SIZE), fill=colours[1])
        d.rectangle((0, 36, SIZE, 48), fill=colours[1])
    else:
        d.rectangle((34 + j, 16, 50 + j, 68), fill=colours[1])
        d.rectangle((16 + j, 34, 68 + j, 50), fill=colours[1])
    return im


def labelled(r):
    """One image and its labels (colour, background, shape, digit, flag; -1 where there is none), for the tower."""
    fg, bg = r.sample(list(COLOURS), 2)
    kind, names = r.random(), list(COLOURS)
    if kind < 0.25:
        n = r.randrange(len(FLAGS))
        return flag(r, list(FLAGS)[n]), (-1, -1, -1, -1, n)
    if kind < 0.6:
        n = r.randint(0, 9)
        return draw(r, None, fg, bg, digit=n), (names.index(fg), names.index(bg), -1, n, -1)
    n = r.randrange(len(SHAPES))
    return draw(r, SHAPES[n], fg, bg), (names.index(fg), names.index(bg), n, -1, -1)


LABELS = (len(COLOURS), len(COLOURS), len(SHAPES), 10, len(FLAGS))


def pixels(im):
    """[3,h,w] as the vendor's preprocessing gives them (deepseek-v41.md 6.1)."""
    v = torch.from_numpy(np.asarray(im).copy()).permute(2, 0, 1).float()
    return (v / 255 - 0.5) / 0.5


def still(r, kind):
    fg, bg = r.sample(list(COLOURS), 2)
    if kind == "flag":
        country = r.choice(list(FLAGS))
        return [flag(r, country)], f"It is the flag of {country}."
    if kind == "digit":
        n = r.randint(0, 9)
        return [draw(r, None, fg, bg, digit=n)], f"The digit is {n}."
    shape = r.choice(SHAPES)
    place = r.choice(list(PLACES)) if kind == "place" else None
    answer = dict(
        colour=f"The shape is {fg}.",
        shape=f"It is a {shape}.",
        describe=f"A {fg} {shape} on a {bg} background.",
        background=f"The background is {bg}.",
        place=f"The shape is {PLACES.get(place)}.",
    )[kind]
    return [draw(r, shape, fg, bg, *((place, 18) if place else ()))], answer


def video(r, kind, changes):
    """Frames of one shape, in one of which (the last) something may change: the answer says both frames, then what."""
    n = r.randint(2, 6)
    bg, k, other, ground = r.sample(list(COLOURS), 4)
    shape = r.choice(SHAPES)
    spec = [dict(shape=shape, colour=k, background=bg, at=(42, 42), scale=18) for _ in range(n)]
    answer = f"There are {NUMBERS[n]} frames."
    if kind in ("change", "frame"):
        what = r.choice(changes)
        new = r.choice([s for s in SHAPES if s != shape])
        last = dict(
            colour=dict(colour=other),
            shape=dict(shape=new),
            background=dict(background=ground),
            nothing={},
            place=dict(at=(r.choice([22, 62]), r.choice([22, 62]))),
        )[what]
        spec[-1].update(last)
        seen = [f"a {f['colour']} {f['shape']} on {f['background']} {PLACES[f['at']]}" for f in (spec[0], spec[-1])]
        if kind == "frame":
            first = r.random() < 0.5
            answer = ("First " if first else "Last ") + seen[0 if first else 1] + "."
            return [draw(r, **s) for s in spec], answer
        answer = f"First {seen[0]}, last {seen[1]}. " + dict(
            colour=f"The colour changes from {k} to {other}.",
            shape=f"The {shape} becomes a {new}.",
            nothing="Nothing changes.",
            background=f"The background changes from {bg} to {ground}.",
            place="The shape moves.",
        )[what]
    return [draw(r, **s) for s in spec], answer


def image_sample(world, r, kind=None):
    kind = kind or r.choices(list(SHARES), list(SHARES.values()))[0]
    several = kind in ("count", "change", "frame")
    images, answer = video(r, kind, CHANGES if world.held else OFTEN) if several else still(r, kind)
    question = world.pick(r, ASKS[kind]).replace("{n}", answer.split()[0].lower())  # of a frame: the first or the last
    sample = world.finish(r, question, answer, "I look at the image.", noise=False)
    user = next(m for m in sample.request["messages"] if m["role"] == "user")
    parts = [dict(type="image_url", image_url=dict(url="")) for _ in images]
    user["content"] = [*parts, dict(type="text", text=user["content"])]
    return Sample(sample.request, images)
