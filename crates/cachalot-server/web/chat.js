// What one does with conversations: open, ask, edit, answer again, stop. Holds the open conversation and the answers in the making,
// which go on when another conversation is opened. Writes through to the store, in order. Knows no DOM.

import { Conversation } from './conversation.js';
import { Generation } from './generation.js';
import { defaults, requestFields } from './settings.js';

export class Chat {
  /** Id of the model to ask, null until the server has said one. */
  model = null;
  current = Conversation.blank(defaults());
  records = [];
  #running = new Map();
  #opening = null;
  #writes = Promise.resolve();
  #others = 'BroadcastChannel' in globalThis ? new BroadcastChannel('cachalot') : null;

  /**
   * `hooks`: changed() after anything but a growing answer changed; updated(message) while one grows; refused(status, again) when the
   * server refused a request, `again` repeating it; ended(message); say(text) for a person.
   */
  constructor(api, store, hooks) {
    Object.assign(this, { api, store, hooks });
    this.#others?.addEventListener('message', ({ data }) => this.#otherTab(data));
  }

  get running() {
    return [...this.#running.keys()];
  }

  get busy() {
    return this.#running.has(this.current.id);
  }

  async refresh() {
    this.records = await this.store.conversations();
    this.hooks.changed();
  }

  /** Opens a kept conversation; returns whether it exists. */
  async open(id) {
    this.#opening = id;
    if (id === this.current.id) return true;
    const live = this.#running.get(id)?.conversation;
    const loaded = live ? null : await this.store.load(id);
    if (!live && !loaded) return false;
    if (this.#opening !== id) return true; // another one was asked for meanwhile
    this.current = live ?? new Conversation(loaded.record, loaded.messages.map(interrupted));
    this.hooks.changed();
    return true;
  }

  /** Begins a conversation; it is kept from its first message on. */
  begin() {
    this.#opening = null;
    if (!this.current.empty) this.current = Conversation.blank(defaults());
    this.hooks.changed();
  }

  /** Asks; returns whether the question was taken. */
  ask(content, images) {
    if (this.busy) return false;
    const parent = this.current.record.leaf;
    this.#question(this.current, { content, images }, parent);
    return true;
  }

  /** Asks the same place of the conversation something else, on a branch of its own. */
  edit(message, content) {
    this.#question(this.current, { content, images: message.images ?? [] }, message.parent);
  }

  #question(conversation, fields, parent) {
    const question = conversation.add('user', parent, fields);
    this.#keep(conversation);
    this.#write(() => this.store.putMessage(question));
    this.#answer(conversation, conversation.add('assistant', question.id, { reasoning: '' }));
  }

  /** Answers again, beside the answer there is; in its place if nothing came of that. */
  again(message) {
    const conversation = this.current;
    const nothing = message.state === 'failed' && message.content === '' && message.reasoning === '';
    if (nothing) conversation.select(message);
    this.#answer(conversation, nothing ? message : conversation.add('assistant', message.parent, { reasoning: '' }));
  }

  /** Shows the branch beside `message`, one step on or back. */
  turn(message, step) {
    const siblings = this.current.siblings(message);
    const other = siblings[siblings.indexOf(message) + step];
    if (!other) return;
    this.current.select(other);
    this.#keep(this.current);
    this.hooks.changed();
  }

  stop() {
    this.#running.get(this.current.id)?.stop();
  }

  set settings(settings) {
    this.current.record.settings = settings;
    if (!this.current.empty) this.#keep(this.current);
    this.hooks.changed();
  }

  async rename(id, title) {
    const record = id === this.current.id ? this.current.record : this.#running.get(id)?.conversation.record ?? this.records.find((other) => other.id === id);
    Object.assign(record, { title, named: true });
    this.#write(() => this.store.putConversation(record));
    await this.#writes;
    await this.refresh();
  }

  async remove(id) {
    this.#forget(id);
    this.#write(() => this.store.remove(id));
    await this.#writes;
    this.#others?.postMessage({ removed: id });
    await this.refresh();
  }

  search(text) {
    return this.store.search(text);
  }

  /** Writes what has come of all answers in the making: the page may be about to close. */
  flush() {
    for (const generation of this.#running.values()) generation.flush();
  }

  async #answer(conversation, message) {
    this.#running.get(conversation.id)?.stop();
    message.model = this.model;
    const generation = new Generation(this.api, conversation, message, {
      changed: () => this.hooks.updated(message),
      save: (changed) => this.#write(() => this.store.putMessage(changed)),
    });
    this.#running.set(conversation.id, generation);
    // The record names the message as its leaf, so the message goes first.
    generation.flush();
    this.#keep(conversation);
    const body = { model: this.model, messages: conversation.prompt(message), ...requestFields(conversation.record.settings) };
    const answering = generation.run(body);
    this.hooks.changed();
    const status = await answering;
    if (this.#running.get(conversation.id) === generation) this.#running.delete(conversation.id);
    this.hooks.changed();
    this.hooks.ended(message);
    if (status && conversation === this.current) this.hooks.refused(status, () => this.again(message));
  }

  #keep(conversation) {
    const record = structuredClone(conversation.record);
    this.records = [record, ...this.records.filter((other) => other.id !== record.id)].sort((a, b) => b.updated - a.updated);
    this.#write(() => this.store.putConversation(record)).then(() => this.#others?.postMessage({ kept: record.id }));
  }

  #write(action) {
    this.#writes = this.#writes.then(action).catch((error) => this.hooks.say(`The browser did not store this conversation: ${error.message}`));
    return this.#writes;
  }

  #forget(id) {
    this.#running.get(id)?.stop();
    if (id === this.current.id) this.current = Conversation.blank(defaults());
  }

  #otherTab({ removed }) {
    if (removed) this.#forget(removed);
    this.refresh();
  }
}

/** A kept answer that was still growing when its page went away. */
function interrupted(message) {
  if (message.state !== 'streaming') return message;
  return { ...message, state: 'failed', error: 'The page was closed before the answer was complete.' };
}
