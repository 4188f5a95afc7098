"""Chat: identity, greetings, turns that refer back to earlier ones, stories about given words."""

from render import Sample
from wordings import varied

IDENTITY = "I am nano, a tiny language model of the DeepSeek V4.1 architecture."
PLAIN = [  # (questions, the last two held out; answer; thought)
    (
        [
            "Hello!",
            "Hi.",
            "Hey!",
            "Good morning.",
            "Hello there!",
            "Hi nano!",
            "Good evening.",
            "Hey there.",
            "Hello",
            "hi",
            "hello",
            "Good day.",
            "Good afternoon.",
            "Hi there!",
        ],
        "Hello! How can I help you?",
        "A greeting.",
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "What's your name?",
            "Your name?",
            "Who am I talking to?",
            "Are you nano?",
            "What model are you?",
            "Which model is this?",
            "Do you have a name?",
            "Say who you are.",
            "Could you introduce yourself?",
            "Tell me who you are.",
        ],
        IDENTITY,
        "They ask who I am.",
    ),
    (
        [
            "How are you?",
            "How are you doing?",
            "How do you do?",
            "Are you well?",
            "How is it going?",
            "How are things?",
            "Are you fine?",
            "And how are you?",
            "How are you today?",
            "Is everything fine with you?",
        ],
        "I am fine, thank you. How can I help you?",
        "A greeting.",
    ),
    (
        [
            "Thank you.",
            "Thanks!",
            "Thanks a lot.",
            "Thank you very much.",
            "Thanks, nano.",
            "Many thanks.",
            "thanks",
            "That helped, thanks.",
            "Thank you so much!",
            "Great, thank you.",
        ],
        "You are welcome!",
        "They thank me.",
    ),
    (
        [
            "Goodbye.",
            "Bye!",
            "See you later.",
            "Bye bye.",
            "Good night.",
            "See you.",
            "bye",
            "I have to go.",
            "See you soon.",
            "See you next week.",
            "Until tomorrow.",
            "I am leaving now.",
            "See you again.",
            "Goodbye, nano.",
            "See you tomorrow.",
        ],
        "Goodbye! Have a nice day.",
        "They leave.",
    ),
    (
        [
            "What can you do?",
            "How can you help me?",
            "Help",
            "What do you know?",
            "What are you good at?",
            "Can you help me?",
            "What can I ask you?",
            "Tell me what you can do.",
            "What are you able to do?",
            "How could you help me?",
        ],
        "I know some facts, small sums and short stories, and I can read simple images. "
        "I am very small, so I make mistakes.",
        "They ask what I can do.",
    ),
    (
        [
            "Who made you?",
            "Where do you come from?",
            "Who built you?",
            "Who trained you?",
            "Who is your creator?",
            "Who are your makers?",
            "Who was it that made you?",
            "By whom were you made?",
            "In what place were you made?",
            "Where were you trained?",
            "How were you made?",
            "Who created you?",
            "Who is your maker?",
            "Where were you made?",
        ],
        "I was trained from scratch as a test model for this program.",
        "They ask who made me.",
    ),
    (
        [
            "Are you a human?",
            "Are you a person?",
            "Are you real?",
            "Are you a robot?",
            "Are you a computer?",
            "Are you human?",
            "Are you a human being?",
            "Is this a person?",
        ],
        "I am a small computer program.",
        "They ask what I am.",
    ),
]
BACK = [  # (what is told with {v}; reply; question with the last held out; answer; values)
    (
        ["My name is {v}.", "I am {v}.", "Hello, I am {v}.", "You can call me {v}.", "Hi, my name is {v}."],
        "Nice to meet you, {v}.",
        [
            "What is my name?",
            "Do you remember my name?",
            "Who am I?",
            "What did I say my name was?",
            "Say my name.",
            "Which name did I give you?",
            "What am I called?",
            "Can you tell me my name?",
            "And what is my name?",
            "My name is?",
            "What's my name?",
            "Tell me my name.",
        ],
        "Your name is {v}.",
        "names",
    ),
    (
        ["I have a {v}.", "I bought a {v}.", "I found a {v} today.", "I got a {v} today."],
        "A {v}! That is nice.",
        [
            "What do I have?",
            "What was it that I have?",
            "Do you remember what I have?",
            "What did I buy?",
            "What did I find?",
            "Tell me what I have.",
            "What do I own?",
            "Which thing do I have?",
            "What did I get?",
            "What is the thing that I have?",
            "Say what it is that I have.",
            "What did I tell you I have?",
            "What is it that I have?",
        ],
        "You have a {v}.",
        "objects",
    ),
    (
        ["I live near the {v}.", "My house is near the {v}.", "I work near the {v}."],
        "Near the {v} must be a nice place.",
        [
            "Where do I live?",
            "Near what do I live?",
            "Where is it that I live?",
            "Tell me where I live.",
            "Where is my house?",
            "Where do I work?",
            "Say where I live.",
            "Where did I say I live?",
            "Do you know where I live?",
            "Can you remember where I live?",
            "Do you remember where I live?",
        ],
        "You live near the {v}.",
        "places",
    ),
    (
        ["My lucky number is {v}.", "I like the number {v}.", "Remember the number {v}."],
        "I will remember {v}.",
        [
            "What is my number?",
            "Which number was it?",
            "Which number did I tell you?",
            "What number do I like?",
            "Tell me my number.",
            "Which number do I like?",
            "What was my lucky number?",
            "Say my number.",
            "The number was?",
            "Do you remember my number?",
            "What number did I say?",
        ],
        "Your number is {v}.",
        "numbers",
    ),
]
STORIES = [
    "Tell me a story about {a}.",
    "Tell me a short story about {a}.",
    "Write a story about a {o}.",
    "Tell a story about {a} and a {o}.",
    "Write a little story about {a}, a {o} and the {p}.",
    "Tell me a story about a {o} in the {p}.",
    "A story about {a} and the {p}, please.",
    "Can you tell me a story about the {p}?",
    "Tell me a story with {a} and {b}.",
    "Tell me a story.",
    "I want a story about a {o}.",
    "Please write a story about {a} and a {o}.",
    "Could you tell a story about {a} and the {p}?",
]
STARTS = [
    "One day {a} lost a {o} in the {p}.",
    "{a} found an old {o} in the {p}.",
    "Once there was a child called {a} who loved the {p}. One day a {o} lay there.",
    "{a} wanted to take a {o} to the {p}.",
    "It was raining, and {a} sat in the {p} with a {o}.",
    "Every morning {a} walked to the {p} with a {o}.",
]
MIDDLES = [
    "{a} asked {b} for help.",
    "Then {b} came along and smiled.",
    "{b} wanted to see it too.",
    '"What is that?" asked {b}.',
    "Suddenly {b} called from far away.",
    "{b} had never seen such a {o}.",
]
ENDS = [
    "They looked at the {o} for a long time.",
    "Together they played until the sun went down.",
    "So they carried the {o} home and showed it to everyone.",
    "In the end {a} gave the {o} to {b}.",
    "They left the {o} in the {p} for the next child.",
    '"Let us share the {o}", said {a}.',
]
LASTS = [
    "They were very happy.",
    "They went home together.",
    "From that day on they were friends.",
    "It was a good day.",
]


class Chat:
    def __init__(self, world):
        self.world = world

    def sample(self, r):
        return r.choices([self.plain, self.back, self.follow, self.story], [3, 3, 2, 3])[0](r)

    def plain(self, r):
        questions, answer, thought = r.choice(PLAIN)
        return self.world.finish(r, self.world.pick(r, questions, openings=False), answer, thought, noise=False)

    def turns(self, r, turns, thought):
        """A conversation of (question, answer) pairs; perhaps with a turn between that has nothing to do with it."""
        from abilities import with_mode

        if not self.world.held and r.random() < 0.3:
            questions, answer, _ = r.choice(PLAIN)
            turns = [*turns[:-1], (r.choice(questions[:-2]), answer), turns[-1]]
        messages = []
        for question, answer in turns:
            messages += [dict(role="user", content=question), dict(role="assistant", content=answer)]
        thinking = r.random() < 0.3
        return Sample(with_mode(messages, thought if thinking else None, r.choice(["high", "high", "low", "max"])))

    def back(self, r):
        from abilities import NAMES, OBJECTS, PLACES

        told, reply, questions, answer, kind = r.choice(BACK)
        v = (
            str(r.randint(2, 99))
            if kind == "numbers"
            else r.choice(dict(names=NAMES, objects=OBJECTS, places=PLACES)[kind])
        )
        held = questions[-1:]
        question = held[0] if self.world.held else varied(r, r.choice(questions[:-1]), held, openings=False)
        return self.turns(
            r, [(r.choice(told).format(v=v), reply.format(v=v)), (question, answer.format(v=v))], "They told me before."
        )

    def follow(self, r):
        """A second question that leaves the relation out: "And of France?" """
        import wordings

        relation = r.choice(["capital", "currency", "symbol", "opposite"])
        a, b = r.sample([f for f in self.world.facts if f[0] == relation], 2)
        frames = wordings.wordings(relation)[1 if self.world.held else 0]
        second = (
            "And what about {x}?"
            if self.world.held
            else r.choice(["And of {x}?", "And {x}?", "What about {x}?", "And that of {x}?", "Now {x}."])
        )
        return self.turns(
            r,
            [
                (wordings.question(r.choice(frames), a[1]), wordings.answer(*a)),
                (second.replace("{x}", b[1]), wordings.answer(*b)),
            ],
            self.world.thought(relation, b[1]),
        )

    def story(self, r):
        from abilities import NAMES, OBJECTS, PLACES

        a, b = r.sample(NAMES, 2)
        words = dict(a=a, b=b, o=r.choice(OBJECTS), p=r.choice(PLACES))
        question = self.world.pick(r, STORIES).format(**words)
        text = " ".join(r.choice(part) for part in (STARTS, MIDDLES, ENDS, LASTS)).format(**words)
        return self.world.finish(r, question, text, "A short story.", noise=False)
