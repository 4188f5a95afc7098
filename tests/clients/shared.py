"""What several tests ask for and what they are told."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class City(BaseModel):
    """So small that any answer ends within 1,000 tokens, white space included."""

    model_config = ConfigDict(extra="forbid")
    name: Literal["Tokyo", "Paris", "Rome"]
    harbour: Literal["north", "south"] | None = None
    large: bool


QUESTION = "What is the capital of Japan?"
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "object"}},
    "required": ["city"],
}
# Strings of any content, numbers and nested objects, and two calls at once.
ARGUMENTS = [
    {"city": 'Zürich "old" </town>\n<think>', "days": 3, "units": {"wind": ["m/s", None, 1.5]}},
    {"city": "東京"},
]
WEATHER_TURNS = [
    {
        "after": "Weather?",
        "reasoning": "Two cities: I ask for both.",
        "text": "I look.",
        "calls": [{"name": "weather", "arguments": arguments} for arguments in ARGUMENTS],
    },
    {"after": "21 degrees", "reasoning": "Now I know.", "text": "It is 21 degrees in both."},
]


def assert_replayed(server):
    """The second prompt begins with the first one and with the very tokens that were said after it."""
    first, second = server.turn(0), server.turn(1)
    assert second["known_tokens"] >= first["prompt_tokens"] + first["played_tokens"], (first, second)
    assert [request["turn"] for request in server.requests()] == [0, 1]
