// The messages of the open conversation, and where the reader is in them: the page follows a growing answer only while its end is in sight.

import { byId } from './dom.js';
import { MessageView } from './message.js';

const NEAR_PX = 60;
// A long answer is laid out anew at most this often.
const DRAW_EVERY_MS = 60;

export class Thread {
  #scroller = byId('thread');
  #list = byId('messages');
  #jump = byId('jump');
  #views = new Map();
  #conversation = null;
  #following = true;
  #dirty = new Set();
  #timer = null;

  constructor(actions) {
    this.actions = actions;
    this.#scroller.addEventListener('scroll', () => this.#look(), { passive: true });
    this.#jump.addEventListener('click', () => this.toEnd());
    new ResizeObserver(() => this.#follow()).observe(this.#list);
  }

  /** Shows a conversation, or what has changed in it. */
  show(conversation) {
    if (conversation !== this.#conversation) {
      this.#views.clear();
      this.#list.replaceChildren();
      this.#conversation = conversation;
      this.#following = true;
    }
    const path = conversation.path();
    const wanted = new Set(path.map((message) => message.id));
    for (const [id, view] of this.#views) {
      if (wanted.has(id)) continue;
      view.element.remove();
      this.#views.delete(id);
    }
    for (const message of path) {
      if (!this.#views.has(message.id)) {
        const view = new MessageView(message, this.actions);
        this.#views.set(message.id, view);
        this.#list.append(view.element);
      }
      this.#draw(message);
    }
    this.#list.classList.toggle('empty', path.length === 0);
    byId('welcome').hidden = path.length > 0;
    this.#follow();
  }

  /** Shows a message that changed, soon. */
  update(message) {
    if (!this.#views.has(message.id)) return;
    this.#dirty.add(message);
    if (message.state !== 'streaming') return this.#flush();
    this.#timer ??= setTimeout(() => this.#flush(), DRAW_EVERY_MS);
  }

  /** Opens the last question for editing; returns whether there is one. */
  editLast() {
    const views = [...this.#views.values()];
    const last = views.findLast((view) => view.message.role === 'user');
    last?.edit();
    return last !== undefined;
  }

  toEnd() {
    this.#following = true;
    this.#follow();
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    for (const message of this.#dirty) this.#draw(message);
    this.#dirty.clear();
    this.#follow();
  }

  #draw(message) {
    const siblings = this.#conversation.siblings(message);
    this.#views.get(message.id)?.update([siblings.indexOf(message), siblings.length]);
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.#jump.hidden = this.#following;
  }

  #follow() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#jump.hidden = this.#following;
  }
}
