"""How every relation is asked for. The last HELD wordings of a relation are for the evaluation, never trained on.

Of the rest there are at least 14 a relation: breadth of wording makes facts answer to questions put in new words.
"""

HELD = 3

# For relations with a noun: {r} the noun, {x} the subject.
FRAMES = [
    "What is the {r} of {x}?",
    "What's the {r} of {x}?",
    "Tell me the {r} of {x}.",
    "Name the {r} of {x}.",
    "{r} of {x}?",
    "Do you know the {r} of {x}?",
    "Can you tell me the {r} of {x}?",
    "Give me the {r} of {x}.",
    "I need the {r} of {x}.",
    "About {x}: what is the {r}?",
    "{x} - {r}?",
    "{x}, {r}?",
    "Which {r} does {x} have?",
    "What {r} does {x} have?",
    "Please tell me what the {r} of {x} is.",
    "I want to know the {r} of {x}.",
    "The {r} of {x} is what?",
    "For {x}, what is the {r}?",
    "{x} has which {r}?",
    "{x}: {r}?",
    "Say the {r} of {x}.",
    "Would you tell me the {r} of {x}?",
    "Can you say what the {r} of {x} is?",
    "Say what the {r} of {x} is.",
    "What might the {r} of {x} be?",
    "Any idea what the {r} of {x} is?",
    "{x}: what {r} does it have?",
    "And what is the {r} of {x}?",
    "{x}: what is its {r}?",
    "Could you say what the {r} of {x} is?",
    "What would be the {r} of {x}?",
]

OWN = {
    "capital": ["Which city is the capital of {x}?", "Which city does {x} have as its capital?"],
    "currency": ["Which money do people use in {x}?", "What do people pay with in {x}?", "What money is used in {x}?"],
    "colour": ["What colour is {x}?", "Which colour is {x}?", "What color is {x}?"],
    "meaning": ["What does {x} mean?", "Define {x}.", "Explain the word {x}.", "What is meant by {x}?"],
    "symbol": ["How is {x} written in chemistry?", "Which letters stand for {x} in chemistry?"],
    "opposite": ["What is the contrary of {x}?", "Which word is the opposite of {x}?"],
}

SPECIFIC = {
    "country": [
        "{x} is the capital of which country?",
        "Which country has the capital {x}?",
        "Of which country is {x} the capital?",
        "What country is {x} the capital of?",
        "{x} is the capital of what?",
        "Name the country whose capital is {x}.",
        "Tell me which country has {x} as its capital.",
        "Which country's capital is {x}?",
        "{x} - capital of which country?",
        "Do you know which country has {x} as its capital?",
        "The city {x} is the capital of which country?",
        "Whose capital is {x}?",
        "I need the country whose capital is {x}.",
        "{x}, capital of?",
        "{x} is whose capital?",
        "{x}: the capital of which country?",
        "Would you say whose capital {x} is?",
        "Which country is governed from {x}?",
        "{x}: of which country is it the capital?",
        "Can you name the country with the capital {x}?",
        "What is the country that has {x} as its capital?",
    ],
    "continent": [
        "Where is {x}?",
        "On which continent is {x}?",
        "Which continent is {x} in?",
        "What continent is {x} in?",
        "Where is {x} located?",
        "{x} is on which continent?",
        "Tell me the continent of {x}.",
        "Name the continent of {x}.",
        "{x} - continent?",
        "What is the continent of {x}?",
        "Do you know which continent {x} is in?",
        "{x}, where is it?",
        "Can you tell me which continent {x} is in?",
        "{x} lies on which continent?",
        "Where in the world is {x}?",
        "In which part of the world is {x}?",
        "I want to know where {x} is.",
        "Tell me where {x} is.",
        "Can you say where {x} is?",
        "Would you tell me where {x} is?",
        "Any idea where {x} is?",
        "{x}: where is it?",
        "{x}: which continent?",
        "{x} belongs to which continent?",
        "Which continent does {x} lie on?",
        "Say on which continent {x} is.",
        "{x}: on what continent is it?",
        "To which continent does {x} belong?",
        "Could you say where {x} is?",
    ],
    "element": [
        "Which element has the symbol {x}?",
        "What does {x} stand for in chemistry?",
        "{x} is the symbol of which element?",
        "What element is {x}?",
        "Which element is {x}?",
        "Name the element with the symbol {x}.",
        "Tell me which element {x} is.",
        "{x} - which element?",
        "What is {x} in chemistry?",
        "Do you know the element with the symbol {x}?",
        "The symbol {x} belongs to which element?",
        "In chemistry, what is {x}?",
        "Give me the element with the symbol {x}.",
        "Which chemical element is written {x}?",
        "{x} means which element?",
        "{x}: which element is this?",
        "{x}: element?",
        "Can you say which element {x} is?",
        "{x}: what element is it?",
        "Can you name the element whose symbol is {x}?",
        "For which element does {x} stand?",
    ],
    "sound": [
        "What sound does a {x} make?",
        "What does a {x} do?",
        "Which sound does a {x} make?",
        "What noise does a {x} make?",
        "How does a {x} sound?",
        "Tell me what sound a {x} makes.",
        "What does a {x} sound like?",
        "The sound of a {x}?",
        "Do you know what sound a {x} makes?",
        "{x} - sound?",
        "What is the sound of a {x}?",
        "Name the sound of a {x}.",
        "A {x} makes which sound?",
        "Which noise comes from a {x}?",
        "What can you hear from a {x}?",
        "{x}: which noise does it make?",
        "Can you say what noise a {x} makes?",
        "{x}: what sound does it make?",
        "Could you say what sound a {x} makes?",
        "Which sound comes from a {x}?",
    ],
    "legs": [
        "How many legs does a {x} have?",
        "How many legs has a {x}?",
        "On how many legs does a {x} walk?",
        "What number of legs does a {x} have?",
        "Tell me how many legs a {x} has.",
        "A {x} has how many legs?",
        "Do you know how many legs a {x} has?",
        "{x} - how many legs?",
        "Number of legs of a {x}?",
        "Count the legs of a {x}.",
        "Can you tell me how many legs a {x} has?",
        "The legs of a {x}: how many?",
        "I want to know how many legs a {x} has.",
        "How many legs are there on a {x}?",
        "Name the number of legs of a {x}.",
        "{x}: how many legs are there?",
        "{x}: how many legs does it have?",
        "Could you say how many legs a {x} has?",
        "How many legs would a {x} have?",
    ],
    "kind": [
        "What kind of animal is a {x}?",
        "Which kind of animal is a {x}?",
        "A {x} is what kind of animal?",
        "What sort of animal is a {x}?",
        "What type of animal is a {x}?",
        "To which class of animals does a {x} belong?",
        "Tell me what kind of animal a {x} is.",
        "Do you know what kind of animal a {x} is?",
        "{x} - what kind of animal?",
        "Name the kind of animal a {x} is.",
        "Is a {x} a mammal or something else?",
        "A {x} belongs to which kind of animals?",
        "Can you tell me what kind of animal a {x} is?",
        "In which class of animals is a {x}?",
        "I want to know what kind of animal a {x} is.",
        "What sort of animal might a {x} be?",
        "{x}: what sort of animal?",
        "Would you say what kind of animal a {x} is?",
        "{x}: what kind of animal is it?",
        "Could you say what kind of animal a {x} is?",
        "What kind of animal would a {x} be?",
    ],
}
for what in ("day", "month"):
    for side, other in (("after", "before"), ("before", "after")):
        SPECIFIC[f"{what} {side}"] = [
            f"Which {what} comes {side} {{x}}?",
            f"What {what} comes {side} {{x}}?",
            f"What {what} is {side} {{x}}?",
            f"Which {what} is {side} {{x}}?",
            f"Name the {what} {side} {{x}}.",
            f"Tell me the {what} {side} {{x}}.",
            f"The {what} {side} {{x}}?",
            f"What comes {side} {{x}}?",
            f"Which {what} is right {side} {{x}}?",
            f"{{x}} comes {other} which {what}?",
            f"Do you know which {what} comes {side} {{x}}?",
            f"What is the {what} {side} {{x}}?",
            f"Give me the {what} {side} {{x}}.",
            f"I need the {what} {side} {{x}}.",
            f"Name the {what} that is {side} {{x}}.",
            f"Can you tell me which {what} comes {side} {{x}}?",
            f"Which is the {what} that comes {side} {{x}}?",
            f"{{x}}: what {what} is {side} it?",
            f"Say what {what} comes {side} {{x}}.",
            f"Any idea which {what} is {side} {{x}}?",
            f"{{x}}: which {what} comes {side} it?",
            f"Could you say which {what} is {side} {{x}}?",
            f"Can you name the {what} that comes {side} {{x}}?",
        ]

NOUNS = dict(
    capital="capital",
    currency="currency",
    symbol="symbol",
    number="atomic number",
    opposite="opposite",
    colour="colour",
    meaning="meaning",
)

ANSWERS = {
    "capital": "The capital of {x} is {y}.",
    "country": "{x} is the capital of {y}.",
    "continent": "{x} is in {y}.",
    "currency": "The currency of {x} is the {y}.",
    "symbol": "The symbol of {x} is {y}.",
    "number": "The atomic number of {x} is {y}.",
    "element": "{x} is the symbol of {y}.",
    "opposite": "The opposite of {x} is {y}.",
    "sound": "A {x} {y}.",
    "legs": "A {x} has {y} legs.",
    "kind": "A {x} is a {y}.",
    "colour": "{x} is {y}.",
    "meaning": "{x}: {y}.",
    "day after": "{y} comes after {x}.",
    "day before": "{y} comes before {x}.",
    "month after": "{y} comes after {x}.",
    "month before": "{y} comes before {x}.",
}


def articles(text):
    """ "A owl" -> "An owl"."""
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text


def sentence(text):
    """With a capital first letter; the words of a chemical symbol or a name stay as they are."""
    return articles(text[0].upper() + text[1:])


def wordings(relation):
    """Frames with {x}: (those that are trained, those that are held out)."""
    if relation in SPECIFIC:
        frames = SPECIFIC[relation]
        return frames[:-HELD], frames[-HELD:]
    frames = [f.replace("{r}", NOUNS[relation]) for f in FRAMES]
    return frames[:-HELD] + OWN.get(relation, []), frames[-HELD:]


# Words that carry no relation: they may be missing, and any of them may stand anywhere.
LIGHT = (
    "the a is do you know can could tell me give i need which what please say want please, now then just exactly again "
    "would might may will should it its be so really does have has there here that this right out"
).split()


OPENINGS = ["Please", "Could you", "Can you", "Would you", "Will you", "And", "Now", "Then", "Also", "So"]


def varied(r, frame, held, apart=False, openings=True):
    """A trained frame as somebody else might put it, and never one of `held`. `apart`: see `loosened`."""
    new = loosened(r, frame, apart) if r.random() < 0.35 else frame
    if openings and r.random() < 0.12:
        new = f"{r.choice(OPENINGS)} {new[0].lower()}{new[1:]}"
    return frame if plain(new) in map(plain, held) else new


def plain(frame):
    return frame.lower().strip("?.,:! ")


def loosened(r, frame, apart=False):
    """`frame` with a light word or two put in, left out or exchanged, so that an answer does not hang on them.

    `apart` keeps new words away from what stands in braces, where they would belong to a text that is to be copied.
    """
    words = frame.split(" ")
    for _ in range(r.randint(1, 2)):
        light = [i for i, w in enumerate(words) if w.lower().strip("?.,:") in LIGHT]
        what = r.random()
        if what < 0.5 or not light:
            at = r.randrange(len(words) + 1)
            if not (apart and "{" in "".join(words[max(at - 1, 0) : at + 1])):
                words.insert(at, r.choice(LIGHT))
        elif what < 0.75:
            words[r.choice(light)] = r.choice(LIGHT)
        elif len(words) > 2:
            del words[r.choice(light)]
    return " ".join(words)


def question(frame, x):
    return sentence(frame.replace("{x}", x))


def answer(relation, x, y):
    return sentence(ANSWERS[relation].replace("{x}", x).replace("{y}", y))
