// Talks to the server: JSON, the event stream of chat completions, and errors as one type. Knows no DOM.

const KEY = 'cachalot.key';
// Relative to the page, so that a proxy may serve it under any path.
const BASE = new URL('..', import.meta.url);

/** What went wrong, in the server's words where it had any. `status` is the HTTP status, 0 when there was no answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export class Api {
  #key = readKey();

  /** The key is kept for this tab only. An empty one is forgotten. */
  set key(value) {
    this.#key = value.trim();
    try {
      if (this.#key) sessionStorage.setItem(KEY, this.#key);
      else sessionStorage.removeItem(KEY);
    } catch {
      // Without storage it lives as long as the page.
    }
  }

  /** [{id, context_length, input_modalities}], each field but id possibly absent. */
  async models() {
    const body = await this.#json('v1/models');
    if (!Array.isArray(body?.data)) throw new ApiError('The server sent a list of models without "data".');
    return body.data.filter((model) => typeof model?.id === 'string');
  }

  /** README.md lists the fields. */
  status(signal) {
    return this.#json('status', signal);
  }

  /**
   * Asks for a streamed answer and yields the chunks as they come. Returns after `[DONE]`; throws an ApiError when the server refuses,
   * sends an error or ends without it, and the AbortError of `signal`.
   */
  async *chat(body, signal) {
    const response = await this.#fetch('v1/chat/completions', {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept: 'text/event-stream' },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
    let finished = false;
    try {
      for await (const data of events(response.body)) {
        if (data === '[DONE]') return;
        const chunk = parse(data);
        if (chunk.error) throw new ApiError(messageOf(chunk) ?? 'The server reported an error without a message.', response.status);
        finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === 'AbortError') throw error;
      throw new ApiError('The connection broke before the answer was complete.');
    }
    if (!finished) throw new ApiError('The server ended the answer before it was complete.');
  }

  async #json(path, signal) {
    const response = await this.#fetch(path, { signal });
    try {
      return await response.json();
    } catch {
      throw new ApiError(`The server's answer to /${path} is not JSON.`, response.status);
    }
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.#key) headers.authorization = `Bearer ${this.#key}`;
    let response;
    try {
      response = await fetch(new URL(path, BASE), { cache: 'no-store', ...options, headers });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ApiError('The server does not answer. Is it still running?');
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}

function parse(data) {
  try {
    const value = JSON.parse(data);
    if (value && typeof value === 'object') return value;
  } catch {
    // Said below, for both.
  }
  throw new ApiError('The server sent an event that is not a JSON object.');
}

function messageOf(body) {
  const message = body?.error?.message ?? body?.error;
  return typeof message === 'string' && message ? message : null;
}

async function refusal(response) {
  const text = await response.text().catch(() => '');
  let message = null;
  try {
    message = messageOf(JSON.parse(text));
  } catch {
    if (response.headers.get('content-type')?.startsWith('text/plain')) message = text.slice(0, 500).trim() || null;
  }
  return new ApiError(message ?? `The server answered ${response.status} ${response.statusText}`.trim(), response.status);
}

/** The data of each server-sent event of a body: lines may end in any way and be cut anywhere; comments and other fields are skipped. */
export async function* events(body) {
  // Decoded here and not by a stream of its own: a connection that breaks would take with it what that one still held.
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      // A final CR may be the first half of CR LF: it waits for what follows.
      const lines = (rest + decoder.decode(value, { stream: !done })).split(/\r\n|\n|\r(?!$)/);
      rest = done ? '' : lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
        else if (line === '' && data.length > 0) {
          yield data.join('\n');
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    // Whoever stops reading ends the request: the server sees it and stops computing.
    reader.cancel().catch(() => {});
  }
}
