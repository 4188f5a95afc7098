// A conversation is a tree of messages and a leaf: the path from the root to the leaf is what is shown and sent. An edited question
// or another answer is a sibling, so nothing that was said is lost. Plain data, no DOM, no storage.
//
// A message: {id, conversation, parent, order, role, content, state, ...}. A user's has `images` [{name, url}] with data URLs; an
// assistant's has `reasoning`, `model`, `state` (streaming, done, stopped, failed), `error`, `finish`, `usage` and `timing` in ms.

let lastOrder = 0;

/** Random, 128 bits in hex. (crypto.randomUUID is missing on pages from another machine over HTTP.) */
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

export class Conversation {
  constructor(record, messages = []) {
    this.record = record;
    this.messages = new Map(messages.map((message) => [message.id, message]));
    // The newest message stands in for a leaf that was never written.
    if (!this.messages.has(record.leaf)) record.leaf = messages.toSorted((a, b) => a.order - b.order).at(-1)?.id ?? null;
  }

  static blank(settings) {
    const now = Date.now();
    return new Conversation({ id: newId(), title: '', named: false, created: now, updated: now, leaf: null, settings: { ...settings } });
  }

  get id() {
    return this.record.id;
  }

  get empty() {
    return this.messages.size === 0;
  }

  /** Messages from the root to the leaf. */
  path() {
    const path = new Set();
    for (let at = this.messages.get(this.record.leaf); at && !path.has(at); at = this.messages.get(at.parent)) path.add(at);
    return [...path].reverse();
  }

  /** The messages in the same place, oldest first, the message itself among them. */
  siblings(message) {
    return [...this.messages.values()].filter((other) => other.parent === message.parent).sort((a, b) => a.order - b.order);
  }

  /** Adds a message under `parent` (null: at the root) and makes it the leaf. */
  add(role, parent, fields) {
    lastOrder = Math.max(Date.now(), lastOrder + 1);
    const message = { id: newId(), conversation: this.id, parent, order: lastOrder, role, content: '', state: 'done', ...fields };
    this.messages.set(message.id, message);
    this.record.leaf = message.id;
    this.record.updated = Date.now();
    if (role === 'user' && !this.record.named && parent === null) this.record.title = titleOf(message);
    return message;
  }

  /** Shows the branch through `message`: the leaf becomes the newest message below it. */
  select(message) {
    let leaf = message;
    for (;;) {
      const below = [...this.messages.values()].filter((other) => other.parent === leaf.id);
      if (below.length === 0) break;
      leaf = below.reduce((newest, other) => (other.order > newest.order ? other : newest));
    }
    this.record.leaf = leaf.id;
  }

  /** The request's `messages` that ask for `answer`: all before it. Answers of which nothing came are left out. */
  prompt(answer) {
    const path = this.path();
    const system = this.record.settings.system.trim();
    const messages = path
      .slice(0, path.indexOf(answer))
      .filter((message) => message.role === 'user' || message.content !== '')
      .map((message) => ({ role: message.role, content: contentOf(message) }));
    return system ? [{ role: 'system', content: system }, ...messages] : messages;
  }
}

function contentOf(message) {
  if (!message.images?.length) return message.content;
  const images = message.images.map((image) => ({ type: 'image_url', image_url: { url: image.url } }));
  return message.content ? [...images, { type: 'text', text: message.content }] : images;
}

function titleOf(message) {
  const line = message.content.split('\n').find((text) => text.trim()) ?? '';
  const title = line.trim().replace(/\s+/g, ' ');
  return [...title].length > 60 ? `${[...title].slice(0, 59).join('')}…` : title || 'Image';
}
