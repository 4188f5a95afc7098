"""Anthropic's Python SDK."""

import anthropic
import pytest
from conftest import KEY
from shared import ARGUMENTS, QUESTION, WEATHER, WEATHER_TURNS, City, assert_replayed

MESSAGES = [{"role": "user", "content": QUESTION}]
# The SDK has no parameter for the temperature any more; the API has.
GREEDY = {"extra_body": {"temperature": 0}}
ASKED = {"model": "cachalot-nano", "max_tokens": 24, "messages": MESSAGES, **GREEDY}
TOOLS = [{"name": "weather", "description": "Weather of a city", "input_schema": WEATHER}]


def sdk(server):
    return anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def api(nano):
    return sdk(nano)


def test_models(api):
    (model,) = api.models.list()
    assert model.id == "cachalot-nano" and model.type == "model" and model.display_name and model.created_at


def test_messages_whole_and_streamed_say_the_same(api):
    whole = api.messages.create(**ASKED)
    (block,) = whole.content
    assert block.type == "text" and block.text and whole.stop_reason in ("end_turn", "max_tokens")
    with api.messages.stream(**ASKED) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == final.content[0].text == block.text
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = api.messages.count_tokens(model="cachalot-nano", messages=MESSAGES).input_tokens
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == counted
    raw = [event.type for event in api.messages.create(stream=True, **ASKED)]
    assert raw[:2] == ["message_start", "content_block_start"] and raw[-2:] == ["message_delta", "message_stop"]


def test_a_conversation_goes_on_from_what_is_kept(api):
    first = api.messages.create(**ASKED)
    messages = MESSAGES + [{"role": "assistant", "content": first.content}, {"role": "user", "content": "And of France?"}]
    second = api.messages.create(**{**ASKED, "messages": messages})
    assert second.usage.cache_read_input_tokens >= first.usage.input_tokens + first.usage.cache_read_input_tokens


def test_system_and_stop_sequences(api):
    plain = api.messages.create(**ASKED).content[0].text
    stop = plain[len(plain) // 2 :][:3]
    reply = api.messages.create(stop_sequences=[stop], **ASKED)
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", stop)
    assert reply.content[0].text == plain[: plain.index(stop)]
    counted = [
        api.messages.count_tokens(model="cachalot-nano", messages=MESSAGES, system=system).input_tokens
        for system in ("Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}])
    ]
    assert counted[0] == counted[1] > api.messages.count_tokens(model="cachalot-nano", messages=MESSAGES).input_tokens


@pytest.mark.parametrize(
    "more, named",
    [
        ({"messages": []}, "messages"),
        ({"extra_body": {"temperature": 3}}, "temperature"),
        ({"model": "nobody"}, "nobody"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]}]},
            "image",
        ),
    ],
)  # fmt: skip
def test_what_is_not_carried_out_is_refused_by_name(api, more, named):
    with pytest.raises(anthropic.APIStatusError, match=named) as caught:
        api.messages.create(**{**ASKED, **more})
    assert caught.value.status_code in (400, 404)
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"].endswith("_error") and named in body["error"]["message"]


def test_keys(serve):
    server = serve("--api-key", "the-key")
    with pytest.raises(anthropic.AuthenticationError):
        sdk(server).messages.create(**ASKED)
    assert anthropic.Anthropic(base_url=server.url, api_key="the-key").messages.create(**ASKED).content
    assert anthropic.Anthropic(base_url=server.url, auth_token="the-key").messages.create(**ASKED).content


def test_structured_output(api):
    reply = api.messages.parse(model="cachalot-nano", messages=MESSAGES, max_tokens=300, output_format=City, **GREEDY)
    assert isinstance(reply.parsed_output, City)


def test_a_forced_call(api):
    tools = [{"name": name, "input_schema": City.model_json_schema()} for name in ("look_up", "note")]
    choice = {"type": "tool", "name": "note", "disable_parallel_tool_use": True}
    reply = api.messages.create(**{**ASKED, "max_tokens": 300}, tools=tools, tool_choice=choice)
    assert reply.stop_reason == "tool_use"
    (call,) = [block for block in reply.content if block.type == "tool_use"]
    assert call.name == "note"
    City.model_validate(call.input)


def test_tools_with_thinking(playback):
    server = playback(WEATHER_TURNS)
    api = sdk(server)
    asked = {"model": "playback", "max_tokens": 2048, "tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    messages = [{"role": "user", "content": "Weather?"}]
    with api.messages.stream(messages=messages, **asked) as stream:
        events = [event.type for event in stream]
        reply = stream.get_final_message()
    assert "thinking" in events and "input_json" in events
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert reply.content[0].thinking == WEATHER_TURNS[0]["reasoning"] and reply.content[0].signature
    assert [block.input for block in reply.content[2:]] == ARGUMENTS and reply.stop_reason == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "21 degrees"} for block in reply.content[2:]]
    messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]
    reply = api.messages.create(messages=messages, **asked)
    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert reply.content[1].text == "It is 21 degrees in both."
    assert_replayed(server)


def test_tools_without_thinking(playback):
    server = playback(WEATHER_TURNS, thinks=True)
    api = sdk(server)
    asked = {"model": "playback", "max_tokens": 2048, "tools": TOOLS, "thinking": {"type": "disabled"}}
    reply = api.messages.create(messages=[{"role": "user", "content": "Weather?"}], **asked)
    assert [block.type for block in reply.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in reply.content[1:]] == ARGUMENTS
    one = api.messages.create(
        messages=[{"role": "user", "content": "21 degrees?"}], tool_choice={"type": "none"}, **asked
    )
    assert one.content[0].text == "It is 21 degrees in both."
