"""LangChain's models for OpenAI's APIs: Chat Completions and Responses."""

import os

import pytest
from conftest import KEY
from shared import ARGUMENTS, QUESTION, WEATHER_TURNS, City

os.environ["LANGSMITH_TRACING"] = "false"

from langchain_core.messages import HumanMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from langchain_openai import ChatOpenAI, OpenAI  # noqa: E402


@tool
def weather(city: str, days: int = 1, units: dict | None = None) -> str:
    """Weather of a city."""
    return "21 degrees"


def model(server, name, **more):
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key=KEY, model=name, max_retries=0, timeout=120, **more)


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def responses(request):
    return request.param


def text_of(message):
    return message.text if isinstance(message.text, str) else message.text()


def test_whole_and_streamed(nano, responses):
    chat = model(nano, "cachalot-nano", temperature=0, max_tokens=24, use_responses_api=responses, stream_usage=True)
    whole = chat.invoke(QUESTION)
    assert text_of(whole) and whole.usage_metadata["output_tokens"] > 0
    chunks = list(chat.stream(QUESTION))
    assert len(chunks) > 2
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert text_of(total) == text_of(whole)
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_batch(nano):
    chat = model(nano, "cachalot-nano", temperature=0, max_tokens=12)
    alone = [text_of(chat.invoke(question)) for question in (QUESTION, "Who are you?")]
    together = chat.batch([QUESTION, "Who are you?"] * 3)
    assert [text_of(message) for message in together] == alone * 3


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(nano, responses, method):
    chat = model(nano, "cachalot-nano", temperature=0, max_tokens=300, use_responses_api=responses)
    assert isinstance(chat.with_structured_output(City, method=method).invoke(QUESTION), City)


def test_completions(nano):
    assert OpenAI(base_url=f"{nano.url}/v1", api_key=KEY, model="cachalot-nano", max_tokens=4, max_retries=0).invoke("The capital of")


def test_tools(playback, responses):
    server = playback(WEATHER_TURNS)
    chat = model(server, "playback", use_responses_api=responses).bind_tools([weather])
    messages = [HumanMessage("Weather?")]
    messages.append(chat.invoke(messages))
    calls = messages[-1].tool_calls
    assert [call["args"] for call in calls] == ARGUMENTS
    messages += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in calls]
    assert text_of(chat.invoke(messages)) == "It is 21 degrees in both."
    assert [request["turn"] for request in server.requests()] == [0, 1]
