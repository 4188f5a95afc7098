"""`llm`, with its models for OpenAI's API."""

import json

import pytest
from conftest import KEY
from shared import QUESTION, City

FUNCTION = "def town_of(name: str) -> str:\n    'The town of a person'\n    return name + ' lives in Hull'\n"
TURNS = [
    {"after": "Where is Ann?", "calls": [{"name": "town_of", "arguments": {"name": "Ann"}}]},
    {"after": "Ann lives in Hull", "text": "Ann is in Hull."},
]


@pytest.fixture
def llm(client, surroundings):
    """llm(server, model, *arguments) -> its answer."""

    def ask(server, model, *arguments):
        folder = client.folder / "llm"
        folder.mkdir(exist_ok=True)
        entry = {"model_id": "local", "model_name": model, "api_base": f"{server.url}/v1", "supports_tools": True, "supports_schema": True}
        # JSON is YAML.
        (folder / "extra-openai-models.yaml").write_text(json.dumps([entry]))
        return client(["llm", *arguments], LLM_USER_PATH=str(folder), OPENAI_API_KEY=KEY)

    return ask


def test_whole_streamed_and_continued(llm, nano):
    asked = ["-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "24"]
    whole = llm(nano, "cachalot-nano", *asked, "--no-stream", QUESTION)
    assert whole.strip() and llm(nano, "cachalot-nano", *asked, QUESTION) == whole
    assert llm(nano, "cachalot-nano", "--continue", "And of France?").strip()


def test_schema(llm, nano):
    asked = ["-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "300"]
    City.model_validate_json(llm(nano, "cachalot-nano", *asked, "--schema", json.dumps(City.model_json_schema()), QUESTION))


def test_tools(llm, playback):
    server = playback(TURNS)
    asked = ["-m", "local", "--functions", FUNCTION, "Where is Ann?"]
    assert llm(server, "playback", *asked).strip() == "Ann is in Hull."
    assert [request["turn"] for request in server.requests()] == [0, 1]
