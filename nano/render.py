"""A conversation to token ids, by the vendor's own encoder: exactly what `cachalot run`, `chat` and `serve` send.

A request has the shape of a chat-completion request: `messages`, `tools`, `thinking` {"type": "enabled" | "disabled"}
and `reasoning_effort` ("low", "high", "max": 50, 75, 100 in the prompt). A sample is a request whose last message is
the answer.
"""

import json
from dataclasses import dataclass, field

from deepseek_recipe import (
    AssistantMessage,
    BytesImageSource,
    Conversation,
    DeepseekV41Encoding,
    SystemMessage,
    ToolCall,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)
from tokenizers import Tokenizer

from tokenizer import ASSISTANT, EOS, IMAGE

ENCODER_IMAGE = "<｜image｜>"  # how the encoder spells the image token by default
ENCODING = DeepseekV41Encoding()


@dataclass
class Sample:
    """`request` with the answer as its last message, and the pictures of its image parts in order (PIL images)."""

    request: dict
    images: list = field(default_factory=list)


def thinks(request):
    return request.get("thinking", {}).get("type") != "disabled"


def _content(content):
    """Text of a message and the number of images in it; parts are joined by blank lines (protocol.md 2.6)."""
    if isinstance(content, str) or content is None:
        return content or "", 0
    return "\n\n".join(p["text"] if p["type"] == "text" else ENCODER_IMAGE for p in content), sum(
        p["type"] != "text" for p in content
    )


def _message(m, last):
    text, images = _content(m.get("content"))
    sources = [BytesImageSource(b"")] * images
    if m["role"] == "system":
        return SystemMessage(text)
    if m["role"] == "user":
        return UserMessage(text, sources)
    if m["role"] == "tool":
        return ToolMessage(text, m["tool_call_id"])
    calls = [ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in m.get("tool_calls") or []]
    return AssistantMessage(text, m.get("reasoning_content"), calls or None, last and not calls)


def conversation(request):
    tools = [
        ToolDefinition(
            t["function"]["name"], t["function"].get("description") or "", t["function"].get("parameters") or {}
        )
        for t in request.get("tools", [])
    ]
    messages = [_message(m, i == len(request["messages"]) - 1) for i, m in enumerate(request["messages"])]
    return Conversation(
        messages, thinking_mode=thinks(request), tools=tools, reasoning_effort=request.get("reasoning_effort", "high")
    )


def fragments(request):
    """[(text, is a control token)] of the prompt, or of prompt and answer if the last message is the model's."""
    rendered = ENCODING.render_conversation(conversation(request))
    out, at = [], 0
    for a, b in rendered.special_ranges:
        out += [(rendered.prompt[at:a], False), (rendered.prompt[a:b], True)]
        at = b
    out.append((rendered.prompt[at:], False))
    out = [(IMAGE if text == ENCODER_IMAGE and control else text, control) for text, control in out if text]
    if request["messages"][-1]["role"] == "assistant":
        if request["messages"][-1].get("tool_calls"):  # the encoder opened a new turn after the calls
            out = out[: len(out) - [t for t, _ in reversed(out)].index(EOS)]
        else:
            out.append((EOS, True))
    return out


class Renderer:
    """`span(height, width)` gives the positions of an image."""

    def __init__(self, tokenizer_path, span):
        self.controls = Tokenizer.from_file(str(tokenizer_path))
        parts = json.loads(open(tokenizer_path, encoding="utf-8").read())
        parts["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(parts))
        self.span = span
        self.image_id = self.controls.token_to_id(IMAGE)

    def ids(self, pieces, images=()):
        """Token ids of fragments; plain text never becomes a control token. Also which fragment each id is of."""
        ids, source, images = [], [], iter(images)
        for n, (text, control) in enumerate(pieces):
            part = (
                [self.controls.token_to_id(text)] if control else self.plain.encode(text, add_special_tokens=False).ids
            )
            if control and text == IMAGE:
                image = next(images, None)
                part *= 1 if image is None else self.span(image.height, image.width)
            ids += part
            source += [n] * len(part)
        return ids, source

    def prompt(self, request, images=()):
        return self.ids(fragments(request), images)[0]

    def sample(self, sample):
        """(ids, learn): learned is what the model says, from its turn's header to the end of sentence.

        In thinking mode only the last turn is: earlier ones are rendered without their reasoning. The turns of a tool
        loop keep it and are learned.
        """
        pieces = fragments(sample.request)
        ids, source = self.ids(pieces, sample.images)
        heads = [n for n, (t, c) in enumerate(pieces) if c and t == ASSISTANT]
        if thinks(sample.request) and not sample.request.get("tools"):
            heads = heads[-1:]
        learned, inside = [False] * len(pieces), False
        for n, (text, control) in enumerate(pieces):
            learned[n] = inside
            if control and text == EOS:
                inside = False
            elif n - 1 in heads:  # <think> or </think>: given by the prompt
                inside = True
        return ids, [learned[n] for n in source]
