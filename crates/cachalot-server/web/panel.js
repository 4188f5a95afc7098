// The live panel: asks GET /status once a second while somebody can see it. README.md says what the fields mean.

import { byId, svg } from './dom.js';
import { bytes, count, percent, rate } from './format.js';

const EVERY_MS = 1000;
const AFTER_FAILURE_MS = 5000;
const SAMPLES = 60;

const ROWS = {
  tokens_per_second: rate,
  prefill_tokens_per_second: rate,
  expert_hit_rate: percent,
  prompt_cache: percent,
  disk_bytes_per_second: (value) => (typeof value === 'number' ? `${bytes(value)}/s` : bytes(null)),
  prefix_tokens_kept: count,
};

export class Panel {
  #api;
  #root = byId('panel');
  #lines = new Map();
  #timer = null;
  #asking = false;

  constructor(api) {
    this.#api = api;
    for (const place of this.#root.querySelectorAll('[data-line]')) {
      const line = svg('polyline', { points: '' });
      place.append(svg('svg', { viewBox: `0 0 ${SAMPLES - 1} 20`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, line));
      this.#lines.set(place.dataset.line, { line, samples: [] });
    }
    this.#root.addEventListener('toggle', () => this.wake());
    document.addEventListener('visibilitychange', () => this.wake());
    this.wake();
  }

  /** Asks now if the panel can be seen; called when that may have changed. */
  wake() {
    clearTimeout(this.#timer);
    if (!this.#asking) this.#ask();
  }

  #seen() {
    const box = this.#root.getBoundingClientRect();
    return this.#root.open && !document.hidden && box.right > 0 && box.width > 0;
  }

  async #ask() {
    if (!this.#seen()) return;
    this.#asking = true;
    let wait = EVERY_MS;
    try {
      this.#show(await this.#api.status(AbortSignal.timeout(AFTER_FAILURE_MS)));
    } catch (error) {
      wait = AFTER_FAILURE_MS;
      this.#fail(error);
    }
    this.#asking = false;
    this.#timer = setTimeout(() => this.#ask(), wait);
  }

  #show(status) {
    this.#say(null);
    // Of all prompts since the start; 0 / 0 is no number, and shown as such.
    const values = { ...status, prompt_cache: status.cached_prompt_tokens / status.prompt_tokens };
    for (const [name, format] of Object.entries(ROWS)) this.#put(name, format(values[name]));
    const running = count(status.running);
    this.#put('queue', status.waiting > 0 ? `${running} running, ${count(status.waiting)} waiting` : `${running} running`);
    for (const [name, { line, samples }] of this.#lines) {
      samples.push(typeof status[name] === 'number' ? status[name] : 0);
      if (samples.length > SAMPLES) samples.shift();
      const top = Math.max(...samples, 1e-9);
      const from = SAMPLES - samples.length;
      line.setAttribute('points', samples.map((value, index) => `${from + index},${(19 - (18 * value) / top).toFixed(1)}`).join(' '));
    }
  }

  #fail(error) {
    for (const name of [...Object.keys(ROWS), 'queue']) this.#put(name, count(null));
    if (error.status === 404) this.#say('This server reports no figures.');
    else if (error.status === 401) this.#say('The server wants a key.');
    else this.#say('The server does not answer.');
  }

  #say(text) {
    const line = byId('panel-problem');
    if (line.textContent !== (text ?? '')) line.textContent = text ?? '';
    line.hidden = text === null;
  }

  #put(name, text) {
    byId(`panel-${name}`).textContent = text;
  }
}
