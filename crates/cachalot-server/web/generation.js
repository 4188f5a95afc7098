// One answer in the making: reads the stream into a message, measures it, and saves what has come once a second, so that a closed
// page or a cut stream loses next to nothing. Knows no DOM.

const SAVE_EVERY_MS = 1000;

export class Generation {
  #abort = new AbortController();
  #saving = null;

  /** `changed` is called after every change of `message`; `save` writes it. */
  constructor(api, conversation, message, { changed, save }) {
    Object.assign(this, { api, conversation, message, changed, save });
  }

  stop() {
    this.#abort.abort();
  }

  /** Runs to the end; never throws. Returns the HTTP status of a refusal, 0 otherwise. */
  async run(body) {
    const { message } = this;
    const started = performance.now();
    const clock = { first: null, answer: null, last: null };
    let refused = 0;
    Object.assign(message, { state: 'streaming', error: null, finish: null, usage: null, timing: null, pieces: 0 });
    this.#change();
    try {
      for await (const chunk of this.api.chat(body, this.#abort.signal)) this.#take(chunk, clock);
      message.state = 'done';
    } catch (error) {
      if (error.name === 'AbortError') message.state = 'stopped';
      else {
        message.state = 'failed';
        message.error = error.message;
        refused = error.status ?? 0;
      }
    }
    if (clock.first !== null) {
      message.timing = {
        first: clock.first - started,
        reasoning: message.reasoning ? (clock.answer ?? clock.last) - clock.first : null,
        answering: clock.last - clock.first,
      };
    }
    clearTimeout(this.#saving);
    this.#saving = null;
    // First kept, then shown as finished.
    await this.flush();
    this.changed();
    return refused;
  }

  #take(chunk, clock) {
    const { message } = this;
    const choice = chunk.choices?.[0];
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (chunk.usage) message.usage = chunk.usage;
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    if (content || reasoning) {
      clock.last = performance.now();
      clock.first ??= clock.last;
      message.pieces += 1;
    }
    if (reasoning) message.reasoning += reasoning;
    if (content) {
      clock.answer ??= clock.last;
      message.content += content;
    }
    this.#change();
  }

  #change() {
    this.changed();
    this.#saving ??= setTimeout(() => {
      this.#saving = null;
      this.flush();
    }, SAVE_EVERY_MS);
  }

  /** Writes what has come so far. */
  flush() {
    return this.save(this.message);
  }
}

/** Tokens per second of a finished answer as the page saw it, null where the server counted none or it was too short to tell. */
export function speedOf(message) {
  const tokens = message.usage?.completion_tokens;
  const ms = message.timing?.answering;
  return tokens > 1 && ms >= 100 ? (1000 * (tokens - 1)) / ms : null;
}
