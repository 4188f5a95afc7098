"""Tool samples: calls in V4.1's markup when a tool fits, none when none fits or none is given, answers from results."""

import json

from render import Sample

CITIES_HELD = 12  # the last cities of the list are only in the evaluation
CANNOT = "I cannot do that without a tool."


def schema(name, description, **parameters):
    properties = {k: dict(type=t, description=d) for k, (t, d) in parameters.items()}
    return dict(
        type="function",
        function=dict(
            name=name,
            description=description,
            parameters=dict(type="object", properties=properties, required=list(properties)),
        ),
    )


TOOLS = {
    t["function"]["name"]: t
    for t in (
        schema("get_weather", "Current weather in a city", city=("string", "Name of the city")),
        schema("get_time", "Local time in a city", city=("string", "Name of the city")),
        schema("calculator", "Evaluate an expression", expression=("string", "What to evaluate")),
        schema("search", "Search the web", query=("string", "What to search for")),
        schema("read_file", "Read a text file", path=("string", "Path of the file")),
        schema(
            "send_message",
            "Send a message to a person",
            to=("string", "Name of the person"),
            text=("string", "The message"),
        ),
        schema("set_timer", "Set a timer", minutes=("integer", "Number of minutes")),
        schema(
            "convert",
            "Convert an amount of money",
            amount=("integer", "The amount"),
            currency=("string", "Target currency"),
        ),
    )
}

ASKS = {  # the last two wordings of a tool are held out
    "get_weather": [
        "What is the weather in {city}?",
        "How is the weather in {city}?",
        "Weather in {city}?",
        "Is it raining in {city}?",
        "Tell me the weather in {city}.",
        "Is it warm in {city}?",
        "What's the weather like in {city}?",
        "Check the weather in {city}.",
        "I need the weather in {city}.",
        "How warm is it in {city}?",
        "Do I need an umbrella in {city}?",
        "Will it rain in {city}?",
        "How cold is it in {city}?",
        "Is it snowing now in {city}?",
        "Weather report for {city}.",
        "Please look at the weather in {city}.",
        "Could you check the weather in {city}?",
        "How is the weather now in {city}?",
    ],
    "get_time": [
        "What time is it in {city}?",
        "Tell me the time in {city}.",
        "Time in {city}?",
        "How late is it in {city}?",
        "What is the local time in {city}?",
        "I need the time in {city}.",
        "Check the time in {city}.",
        "Give me the time in {city}.",
        "What's the time in {city}?",
        "What does the clock say in {city}?",
        "Is it late in {city} now?",
        "Now in {city}: what time?",
        "The clock in {city}?",
        "Which time is it in {city}?",
        "What hour is it in {city}?",
        "Could you check the time in {city}?",
        "What time is it now in {city}?",
    ],
    "calculator": [
        "What is {expression}?",
        "Calculate {expression}.",
        "How much is {expression}?",
        "Compute {expression}.",
        "{expression} = ?",
        "Work out {expression}.",
        "Tell me {expression}.",
        "I need {expression}.",
        "What does {expression} make?",
        "Please calculate {expression}.",
        "How much does {expression} make?",
        "The result of {expression}?",
        "Say what {expression} is.",
        "I want to know {expression}.",
        "Could you say how much {expression} is?",
        "What would {expression} be?",
    ],
    "search": [
        "Search for {query}.",
        "Look up {query}.",
        "Find something about {query}.",
        "Search the web for {query}.",
        "Google {query}.",
        "I want to read about {query}.",
        "Find pages about {query}.",
        "Do a search for {query}.",
        "Search the web: {query}",
        "See what the web says about {query}.",
        "What does the web say about {query}?",
        "Please look up {query}.",
        "Look on the web for {query}.",
        "Are there pages about {query}?",
        "Could you search for {query}?",
        "Look for {query} on the web.",
    ],
    "read_file": [
        "Read {path}.",
        "Open the file {path}.",
        "What is in {path}?",
        "Show me {path}.",
        "Read the file {path}.",
        "Print {path}.",
        "Tell me what is in {path}.",
        "I need the text of {path}.",
        "What does {path} say?",
        "What stands in {path}?",
        "Open {path} and read it.",
        "Please read {path}.",
        "Can I see {path}?",
        "The content of {path}?",
        "Could you read {path}?",
        "What does the file {path} say?",
    ],
    "send_message": [
        "Tell {to}: {text}",
        "Send {to} this message: {text}",
        "Write to {to}: {text}",
        "Message {to}: {text}",
        "Send to {to}: {text}",
        "Let {to} know: {text}",
        "Send a message to {to}: {text}",
        "Text {to}: {text}",
        "Please tell {to}: {text}",
        "Message for {to}: {text}",
        "Write {to} a message: {text}",
        "Send this message to {to}: {text}",
        "Say to {to}: {text}",
        "Pass this on to {to}: {text}",
        "Could you tell {to}: {text}",
        "Send this to {to}: {text}",
    ],
    "set_timer": [
        "Set a timer for {minutes} minutes.",
        "Timer: {minutes} minutes.",
        "Wake me in {minutes} minutes.",
        "Start a timer of {minutes} minutes.",
        "Remind me in {minutes} minutes.",
        "I need a timer for {minutes} minutes.",
        "{minutes} minutes timer, please.",
        "Count down {minutes} minutes.",
        "Please set a timer: {minutes} minutes.",
        "In {minutes} minutes, ring.",
        "Alarm in {minutes} minutes.",
        "Can you time {minutes} minutes?",
        "Tell me when {minutes} minutes are over.",
        "Could you set a timer for {minutes} minutes?",
        "Ring in {minutes} minutes.",
    ],
    "convert": [
        "Convert {amount} dollars to {currency}.",
        "How much is {amount} dollars in {currency}?",
        "Change {amount} dollars into {currency}.",
        "{amount} dollars in {currency}?",
        "What are {amount} dollars in {currency}?",
        "I need {amount} dollars in {currency}.",
        "Turn {amount} dollars into {currency}.",
        "Give me {amount} dollars in {currency}.",
        "How many {currency} do I get for {amount} dollars?",
        "Exchange {amount} dollars for {currency}.",
        "Dollars to {currency}: {amount}",
        "What is {amount} dollars in {currency}?",
        "I have {amount} dollars. How many {currency} is that?",
        "Could you convert {amount} dollars to {currency}?",
        "How many {currency} are {amount} dollars?",
    ],
}
MESSAGES = [
    "I am late.",
    "See you soon.",
    "Dinner is ready.",
    "Call me back.",
    "The train is gone.",
    "Happy birthday!",
    "Where are you?",
    "I found the key.",
    "The meeting is over.",
    "Good luck!",
]
FILES = ["notes", "todo", "report", "list", "readme", "plan", "letter", "config", "data", "story"]
ENDINGS = ["txt", "md", "json", "py", "rs", "csv"]
CURRENCIES = ["euro", "yen", "pound", "peso", "rupee", "franc", "won", "krona"]
WEATHER = ["sunny", "cloudy", "rainy", "windy", "foggy", "snowy"]


class Tools:
    def __init__(self, world):
        self.world = world
        self.cities = [y for relation, _, y in world.facts if relation == "capital"]

    def arguments(self, r, name):
        held, w = self.world.held, self.world
        cities = self.cities[-CITIES_HELD:] if held else self.cities[:-CITIES_HELD]
        new = not held and r.random() < 0.5  # arguments never seen before, to be copied piece by piece
        if new:
            cities = [w.made_up(r) if r.random() < 0.6 else r.choice(r.choice([w.words, w.parts])).capitalize()]
        people = [w.made_up(r)] if new else w.words[:20]
        files = [r.choice([w.made_up(r).lower(), r.choice(w.words).lower()])] if new else FILES
        found = [w.made_up(r) for _ in range(3)] if new else w.words[60:]
        messages = [self.line(r)] if new else MESSAGES
        return dict(
            get_weather=lambda: dict(city=r.choice(cities)),
            get_time=lambda: dict(city=r.choice(cities)),
            calculator=lambda: dict(expression=f"{r.randint(100, 9999)} {r.choice('+-*')} {r.randint(100, 9999)}"),
            search=lambda: dict(query=" ".join(r.sample(found, r.randint(1, 3)))),
            read_file=lambda: dict(
                path=f"{r.choice(files)}{r.choice(['', '_' + str(r.randint(1, 99))])}.{r.choice(ENDINGS)}"
            ),
            send_message=lambda: dict(to=r.choice(people), text=r.choice(messages)),
            set_timer=lambda: dict(minutes=r.randint(2, 90)),
            convert=lambda: dict(amount=r.randint(5, 999), currency=r.choice(CURRENCIES)),
        )[name]()

    def offer(self, r, *needed):
        names = list(dict.fromkeys([*needed, *r.sample(list(TOOLS), r.randint(1, 3))]))[
            : max(len(needed), r.randint(1, 3))
        ]
        r.shuffle(names)
        return [TOOLS[n] for n in names]

    def result(self, r, name, arguments):
        """What the tool returns, and the answer that is read off it."""
        if name == "get_weather":
            w, t = r.choice(WEATHER), r.randint(-9, 35)
            return json.dumps(dict(weather=w, temperature=t)), f"It is {w} and {t} degrees in {arguments['city']}."
        if name == "get_time":
            t = f"{r.randint(0, 23)}:{r.randint(0, 59):02}"
            return t, f"It is {t} in {arguments['city']}."
        if name == "calculator":
            v = str(r.randint(1000, 999999))
            return v, f"{arguments['expression']} = {v}"
        if name == "convert":
            v = str(r.randint(10, 99999))
            return v, f"{arguments['amount']} dollars are {v} {arguments['currency']}."
        if name == "read_file":
            line = self.line(r)
            return line, f"{arguments['path']} says: {line}"
        if name == "search":
            line = self.line(r)
            return line, f"I found this: {line}"
        return (
            "ok",
            "The message is sent."
            if name == "send_message"
            else f"The timer is set for {arguments['minutes']} minutes.",
        )

    def line(self, r):
        """A line of text to be read out; in training mostly one that cannot be known."""
        line, what = r.choice(self.world.glosses), 0 if self.world.held else r.random()
        if what > 0.7:
            return self.world.filler(r, 1)[0]
        if what > 0.3:
            return line.split(": ")[0] + ": " + r.choice(self.world.glosses).split(": ", 1)[-1]
        return line

    def sample(self, r):
        kinds = [self.session, self.call, self.loop, self.no_need, self.no_tool]
        return r.choices(kinds, [6, 3, 1, 1, 2])[0](r)

    def session(self, r):
        """A conversation on one offer of tools, whose long text is so paid for once."""
        names, messages, thoughts = r.sample(list(TOOLS), r.randint(1, 3)), [], []
        for n in range(r.randint(3, 7)):
            kind = r.choices(["loop", "no_need", "no_fit"], [6, 2, 1])[0]
            if kind == "loop":
                part = self.loop(r, r.choice(names))
            else:
                part = self.no_need(r) if kind == "no_need" else self.no_fit(r, names)
            for m in part.request["messages"]:
                thought = m.pop("reasoning_content", None)
                if m["role"] == "assistant":
                    called = m.get("tool_calls")
                    after = messages[-1]["role"] == "tool"
                    said = "No tool fits." if m["content"] == CANNOT else "I know this."
                    thoughts.append(
                        f"I call {called[0]['function']['name']}." if called
                        else "The tool has answered." if after else thought or said
                    )
                for call in m.get("tool_calls", ()):
                    call["id"] = f"call_{n:02}"
                if m["role"] == "tool":
                    m["tool_call_id"] = f"call_{n:02}"
                messages.append(m)
        if r.random() < 0.4 and messages[-2]["role"] == "tool":  # ends with the call
            del messages[-2:], thoughts[-1]
        return self.request(r, messages, thoughts, [TOOLS[n] for n in names])

    def call(self, r, name=None):
        name = name or r.choice(list(TOOLS))
        arguments = self.arguments(r, name)
        question = self.world.pick(r, ASKS[name]).format(**arguments)
        return self.request(
            r, [dict(role="user", content=question), self.turn(name, arguments)], f"I call {name}.", self.offer(r, name)
        )

    def turn(self, name, arguments):
        return dict(
            role="assistant",
            content="",
            tool_calls=[dict(id="call_00", type="function", function=dict(name=name, arguments=json.dumps(arguments)))],
        )

    def request(self, r, messages, thought, tools):
        """`thought` is that of every answer, or a list of one for each."""
        from abilities import with_mode

        thinking, answers = r.random() < 0.5, [m for m in messages if m["role"] == "assistant"]
        thoughts = [thought] * len(answers) if isinstance(thought, str) else thought
        if thinking:
            for m, t in zip(answers, thoughts, strict=True):
                m["reasoning_content"] = t
        last = thoughts[-1] if thinking else None
        return Sample(with_mode(messages, last, r.choice(["high", "high", "low", "max"]), tools))

    def loop(self, r, name=None):
        """Question, call, result, answer."""
        name = name or r.choice(list(TOOLS))
        arguments = self.arguments(r, name)
        question = self.world.pick(r, ASKS[name]).format(**arguments)
        result, answer = self.result(r, name, arguments)
        messages = [
            dict(role="user", content=question),
            self.turn(name, arguments),
            dict(role="tool", tool_call_id="call_00", content=result),
            dict(role="assistant", content=answer),
        ]
        sample = self.request(r, messages, f"I call {name}.", self.offer(r, name))
        if "reasoning_content" in messages[-1]:
            messages[-1]["reasoning_content"] = "The tool has answered."
        return sample

    def no_need(self, r):
        """Tools on offer, but a question that nano answers itself."""
        plain = self.world.chat_samples.plain(r) if r.random() < 0.4 else self.world.fact(r)
        messages = [m for m in plain.request["messages"] if m["role"] != "system"]
        thought = messages[-1].pop("reasoning_content", "I know this.")
        return self.request(r, messages, thought, self.offer(r))

    def no_fit(self, r, names):
        """A request for a tool that is not among `names`."""
        name = r.choice([n for n in TOOLS if n not in (*names, "calculator")])
        question = self.world.pick(r, ASKS[name]).format(**self.arguments(r, name))
        messages = [dict(role="user", content=question), dict(role="assistant", content=CANNOT)]
        return self.request(r, messages, "No tool fits.", [TOOLS[n] for n in names])

    def no_tool(self, r):
        """No tools, or none that fits: say so and call nothing."""
        name = r.choice([n for n in TOOLS if n != "calculator"])
        question = self.world.pick(r, ASKS[name]).format(**self.arguments(r, name))
        messages = [dict(role="user", content=question), dict(role="assistant", content=CANNOT)]
        others = (
            [TOOLS[n] for n in r.sample([n for n in TOOLS if n != name], r.randint(1, 2))] if r.random() < 0.3 else None
        )
        return self.request(r, messages, "No tool fits.", others)
