"""OpenAI's Python SDK."""

import json

import openai
import pytest
from conftest import KEY
from shared import ARGUMENTS, PICTURE, QUESTION, WEATHER, WEATHER_TURNS, City, assert_replayed

MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"model": "cachalot-nano", "temperature": 0}


def sdk(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def api(nano):
    return sdk(nano)


def test_models(api):
    (model,) = api.models.list()
    assert model.id == "cachalot-nano" and model.object == "model"
    assert api.models.retrieve("cachalot-nano").id == model.id
    with pytest.raises(openai.NotFoundError, match="nobody"):
        api.models.retrieve("nobody")


def test_chat_whole_and_streamed_say_the_same(api):
    whole = api.chat.completions.create(messages=MESSAGES, max_tokens=24, **GREEDY)
    (choice,) = whole.choices
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert 0 < whole.usage.completion_tokens <= 24

    chunks = list(
        api.chat.completions.create(
            messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == choice.message.content
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [usage.completion_tokens for usage in usages] == [whole.usage.completion_tokens]
    assert usages[0].prompt_tokens == whole.usage.prompt_tokens


def test_a_conversation_goes_on_from_what_is_kept(api):
    messages = list(MESSAGES)
    first = api.chat.completions.create(messages=messages, max_tokens=24, **GREEDY)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "And of France?"}]
    second = api.chat.completions.create(messages=messages, max_tokens=24, **GREEDY)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_stream_helper(api):
    with api.chat.completions.stream(messages=MESSAGES, max_tokens=24, **GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 1 and "".join(deltas) == final.choices[0].message.content


def test_log_probabilities(api):
    reply = api.chat.completions.create(messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=3, **GREEDY)
    entries = reply.choices[0].logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == reply.choices[0].message.content
    for entry in entries:
        best = [top.logprob for top in entry.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True)
        assert entry.logprob == best[0] <= 0, "greedy: the most likely token was chosen"


def test_sampling_is_repeatable(api):
    def ask(seed):
        reply = api.chat.completions.create(
            model="cachalot-nano", messages=MESSAGES, max_tokens=40, temperature=2, seed=seed, top_p=0.99
        )
        return reply.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_stop(api):
    first = api.chat.completions.create(messages=MESSAGES, max_tokens=24, **GREEDY).choices[0].message.content
    stop = first[len(first) // 2 :][:3]
    reply = api.chat.completions.create(messages=MESSAGES, max_tokens=24, stop=[stop], **GREEDY).choices[0]
    assert reply.message.content == first[: first.index(stop)] and reply.finish_reason == "stop"


def test_completions(api):
    prompt = "The capital of Japan is"
    plain = api.completions.create(prompt=prompt, max_tokens=6, **GREEDY)
    assert plain.choices[0].text and plain.usage.completion_tokens <= 6
    echoed = api.completions.create(prompt=prompt, max_tokens=6, echo=True, **GREEDY)
    assert echoed.choices[0].text == prompt + plain.choices[0].text
    streamed = api.completions.create(prompt=prompt, max_tokens=6, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == plain.choices[0].text
    several = api.completions.create(prompt=[prompt, "The capital of France is"], max_tokens=6, logprobs=2, **GREEDY)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == plain.choices[0].text
    logprobs = several.choices[0].logprobs
    # The token that ends an answer is counted, and no part of its text.
    assert "".join(logprobs.tokens).removesuffix("<｜end▁of▁sentence｜>") == plain.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.tokens)
    assert all(1 <= len(top) <= 3 for top in logprobs.top_logprobs)


def test_completions_score_a_prompt(api):
    prompt = "The capital of Japan is Tokyo"
    asked = {"prompt": prompt, "echo": True, "logprobs": 1, **GREEDY}
    choice = api.completions.create(max_tokens=0, **asked).choices[0]
    logprobs = choice.logprobs
    assert choice.text == "".join(logprobs.tokens) == prompt
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert prompt[offset:].startswith(token)
    chunks = [chunk.choices[0] for chunk in api.completions.create(max_tokens=2, stream=True, **asked)]
    assert "".join(chunk.text for chunk in chunks).startswith(prompt)
    streamed = [value for chunk in chunks if chunk.logprobs for value in chunk.logprobs.token_logprobs]
    assert streamed[: len(logprobs.tokens)] == logprobs.token_logprobs and len(streamed) <= len(logprobs.tokens) + 2


def test_responses_whole_streamed_and_stored(api):
    asked = {"input": QUESTION, "max_output_tokens": 24, **GREEDY}
    whole = api.responses.create(**asked)
    assert whole.output_text and whole.status in ("completed", "incomplete")
    with api.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    raw = [event.type for event in api.responses.create(stream=True, **asked)]
    assert raw[:2] == ["response.created", "response.in_progress"]
    assert raw[-1] == f"response.{whole.status}"

    again = api.responses.create(**{**asked, "input": "And of France?", "previous_response_id": whole.id})
    assert again.previous_response_id == whole.id and again.usage.input_tokens > whole.usage.input_tokens
    assert api.responses.retrieve(whole.id).output_text == whole.output_text
    api.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(whole.id)


@pytest.mark.parametrize(
    "more, named",
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"model": "nobody"}, "nobody"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]}, "image"),
    ],
)
def test_what_is_not_carried_out_is_refused_by_name(api, more, named):
    with pytest.raises(openai.APIStatusError, match=named) as caught:
        api.chat.completions.create(**{"model": "cachalot-nano", "messages": MESSAGES, **more})
    assert caught.value.status_code in (400, 404)
    # The SDK found the server's own message in the error's form.
    assert named in caught.value.body["message"] and caught.value.type


def test_a_prompt_that_does_not_fit(api):
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(messages=[{"role": "user", "content": "word " * 200_000}], **GREEDY)
    assert caught.value.code == "context_length_exceeded"


def test_keys(serve):
    server = serve("--api-key", "the-key")
    with pytest.raises(openai.AuthenticationError):
        sdk(server).models.list()
    assert openai.OpenAI(base_url=f"{server.url}/v1", api_key="the-key", max_retries=0).models.list().data


def test_structured_output(api):
    reply = api.chat.completions.parse(messages=MESSAGES, response_format=City, max_tokens=1000, **GREEDY)
    assert isinstance(reply.choices[0].message.parsed, City)
    reply = api.responses.parse(input=QUESTION, text_format=City, max_output_tokens=1000, **GREEDY)
    assert isinstance(reply.output_parsed, City)
    reply = api.chat.completions.create(
        messages=[{"role": "user", "content": f"{QUESTION} Answer in JSON."}],
        response_format={"type": "json_object"},
        max_tokens=1000,
        **GREEDY,
    )
    choice = reply.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.lstrip().startswith("{")


def test_forced_calls(api):
    def tool(name):
        return {"type": "function", "function": {"name": name, "parameters": City.model_json_schema()}}

    asked = {"messages": MESSAGES, "tools": [tool("look_up"), tool("note")], "max_tokens": 1000, "parallel_tool_calls": False}
    for choice, names in [("required", ("look_up", "note")), ({"type": "function", "function": {"name": "note"}}, ("note",))]:
        reply = api.chat.completions.create(tool_choice=choice, **asked, **GREEDY).choices[0]
        assert reply.finish_reason == "tool_calls"
        (call,) = reply.message.tool_calls
        assert call.function.name in names
        City.model_validate_json(call.function.arguments)


def test_chat_tools(playback):
    server = playback(WEATHER_TURNS, thinks=True)
    api = sdk(server)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    messages = [{"role": "user", "content": "Weather?"}]
    with api.chat.completions.stream(model="playback", messages=messages, tools=tools) as stream:
        events = list(stream)
        reply = stream.get_final_completion().choices[0]
    assert reply.finish_reason == "tool_calls" and reply.message.content.strip() == "I look."
    assert reply.message.reasoning_content == WEATHER_TURNS[0]["reasoning"]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [json.loads(event.arguments) for event in done] == ARGUMENTS
    messages += [reply.message.model_dump(exclude_none=True)] + [
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"} for call in reply.message.tool_calls
    ]
    reply = api.chat.completions.create(model="playback", messages=messages, tools=tools).choices[0]
    assert reply.message.content == "It is 21 degrees in both." and reply.finish_reason == "stop"
    assert_replayed(server)


def test_responses_tools(playback):
    server = playback(WEATHER_TURNS, thinks=True)
    api = sdk(server)
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    items = [{"role": "user", "content": "Weather?"}]
    with api.responses.stream(model="playback", input=items, tools=tools) as stream:
        for _ in stream:
            pass
        reply = stream.get_final_response()
    assert [item.type for item in reply.output] == ["reasoning", "message", "function_call", "function_call"]
    calls = reply.output[2:]
    assert [json.loads(call.arguments) for call in calls] == ARGUMENTS
    items += [item.model_dump(exclude_none=True) for item in reply.output]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"} for call in calls]
    reply = api.responses.create(model="playback", input=items, tools=tools)
    assert reply.output_text == "It is 21 degrees in both."
    assert_replayed(server)
