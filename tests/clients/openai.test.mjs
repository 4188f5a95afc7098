// OpenAI's JavaScript SDK against both servers. test_openai_javascript.py runs this and names the servers.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import test from "node:test";

const { default: OpenAI } = createRequire(process.env.PACKAGES)("openai");
const sdk = (baseURL) => new OpenAI({ baseURL, apiKey: process.env.KEY, maxRetries: 0, timeout: 120_000 });
const nano = sdk(process.env.NANO);
const asked = { model: "cachalot-nano", temperature: 0, messages: [{ role: "user", content: "What is the capital of Japan?" }] };

test("models", async () => {
  const ids = [];
  for await (const model of nano.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ["cachalot-nano"]);
});

test("chat, whole and streamed", async () => {
  const whole = await nano.chat.completions.create({ ...asked, max_tokens: 24 });
  const text = whole.choices[0].message.content;
  assert.ok(text.length > 0);
  let said = "";
  for await (const chunk of await nano.chat.completions.create({ ...asked, max_tokens: 24, stream: true })) {
    said += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(said, text);
  const runner = nano.chat.completions.stream({ ...asked, max_tokens: 24 });
  assert.equal(await runner.finalContent(), text);
});

test("log-probabilities", async () => {
  const reply = await nano.chat.completions.create({ ...asked, max_tokens: 4, logprobs: true, top_logprobs: 2 });
  const entries = reply.choices[0].logprobs.content;
  assert.ok(entries.length > 0 && entries.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length === 2));
});

test("a stream that is left frees the model", async () => {
  const stream = await nano.chat.completions.create({ ...asked, temperature: 2, seed: 1, max_tokens: 4000, stream: true });
  for await (const _ of stream) break;
  const status = new URL("/status", process.env.NANO);
  for (let waited = 0; (await (await fetch(status)).json()).running > 0; waited++) {
    assert.ok(waited < 300, "the answer goes on");
    await new Promise((done) => setTimeout(done, 100));
  }
});

test("completions", async () => {
  const reply = await nano.completions.create({ model: "cachalot-nano", prompt: "The capital of", max_tokens: 3, temperature: 0 });
  assert.ok(reply.choices[0].text.length > 0);
});

test("responses, whole and streamed", async () => {
  const asks = { model: "cachalot-nano", temperature: 0, input: asked.messages[0].content, max_output_tokens: 24 };
  const whole = await nano.responses.create(asks);
  const stream = nano.responses.stream(asks);
  let said = "";
  for await (const event of stream) if (event.type === "response.output_text.delta") said += event.delta;
  assert.equal(said, whole.output_text);
  assert.equal((await stream.finalResponse()).output_text, whole.output_text);
});

test("errors", async () => {
  await assert.rejects(nano.chat.completions.create({ ...asked, n: 2 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.match(error.message, /\bn\b/);
    assert.equal(error.type, "invalid_request_error");
    return true;
  });
});

test("tools, run by the SDK", async () => {
  const seen = [];
  const runner = sdk(process.env.PLAYBACK).chat.completions.runTools({
    model: "playback",
    stream: true,
    messages: [{ role: "user", content: "Weather?" }],
    tools: [
      {
        type: "function",
        function: {
          name: "weather",
          description: "Weather of a city",
          parameters: { type: "object", properties: { city: { type: "string" } } },
          parse: JSON.parse,
          function: ({ city }) => (seen.push(city), "21 degrees"),
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), "It is 21 degrees in both.");
  assert.deepEqual(seen, ['Zürich "old" </town>\n<think>', "東京"]);
});
