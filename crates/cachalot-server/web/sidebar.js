// The list of conversations: grouped by age, searched, renamed, deleted. On a narrow screen it is a drawer.

import { byId, el, iconButton } from './dom.js';

const SEARCH_AFTER_MS = 150;
const DAY_MS = 86_400_000;

export class Sidebar {
  #root = byId('sidebar');
  #list = byId('list');
  #search = byId('search');
  #menu = byId('menu');
  #narrow = matchMedia('(max-width: 760px)');
  #records = [];
  #current = null;
  #running = new Set();
  #found = null;
  #timer = null;

  /** `actions`: open(id), rename(id, title), remove(id), search(text), moved(). */
  constructor(actions) {
    this.actions = actions;
    this.#search.addEventListener('input', () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#look(), SEARCH_AFTER_MS);
    });
    this.#menu.addEventListener('click', () => this.toggle());
    byId('close-sidebar').addEventListener('click', () => this.toggle(false));
    byId('scrim').addEventListener('click', () => this.toggle(false));
    this.#narrow.addEventListener('change', () => this.toggle(false));
    this.#root.addEventListener('transitionend', (event) => {
      if (event.target === this.#root) this.actions.moved();
    });
    this.toggle(false);
  }

  /** Is it a drawer, and open? */
  get over() {
    return this.#narrow.matches && document.body.classList.contains('drawer');
  }

  toggle(open = !this.over) {
    const over = open && this.#narrow.matches;
    const was = this.over;
    document.body.classList.toggle('drawer', over);
    this.#menu.setAttribute('aria-expanded', over);
    // What is out of sight is out of the keyboard's way; so is the page under the drawer.
    this.#root.inert = this.#narrow.matches && !over;
    byId('main').inert = over;
    if (over) byId('close-sidebar').focus();
    else if (was) this.#menu.focus();
    this.actions.moved();
  }

  show(records, current, running) {
    this.#records = records;
    this.#current = current;
    this.#running = new Set(running);
    this.#draw();
  }

  async #look() {
    const text = this.#search.value.trim();
    const found = text ? await this.actions.search(text) : null;
    if (text !== this.#search.value.trim()) return;
    this.#found = found;
    this.#draw();
  }

  #shown() {
    if (this.#found === null) return this.#records;
    const text = this.#search.value.trim().toLowerCase();
    return this.#records.filter((record) => this.#found.has(record.id) || record.title.toLowerCase().includes(text));
  }

  #draw() {
    if (this.#list.querySelector('input')) return; // a title is being typed
    const focused = document.activeElement?.closest?.('#list li')?.dataset.id;
    const groups = new Map();
    for (const record of this.#shown()) {
      const age = ageOf(record.updated);
      if (!groups.has(age)) groups.set(age, []);
      groups.get(age).push(this.#item(record));
    }
    const nodes = [...groups].flatMap(([age, items]) => [el('h3', { text: age }), el('ul', {}, ...items)]);
    const empty = el('p', { class: 'note', text: this.#found ? 'Nothing found.' : 'No conversations yet.' });
    this.#list.replaceChildren(...(nodes.length > 0 ? nodes : [empty]));
    if (focused) this.#list.querySelector(`li[data-id="${focused}"] .title`)?.focus();
  }

  #item(record) {
    const current = record.id === this.#current;
    const open = el('button', {
      type: 'button', class: 'title', text: record.title, title: record.title, 'aria-current': current ? 'page' : null,
      on: {
        click: () => {
          this.actions.open(record.id);
          if (this.over) this.toggle(false);
        },
        keydown: (event) => {
          if (event.key === 'F2') this.#rename(record);
          else if (event.key === 'Delete') this.actions.remove(record.id);
        },
      },
    });
    const running = this.#running.has(record.id) ? el('span', { class: 'running', role: 'img', 'aria-label': 'answering' }) : null;
    return el('li', { class: current ? 'current' : null, 'data-id': record.id }, open, running,
      iconButton('pencil', `Rename ${record.title}`, () => this.#rename(record)),
      iconButton('trash', `Delete ${record.title}`, () => this.actions.remove(record.id)));
  }

  #rename(record) {
    const item = this.#list.querySelector(`li[data-id="${record.id}"]`);
    const input = el('input', { type: 'text', maxlength: '200', 'aria-label': 'Title' });
    input.value = record.title;
    let open = true;
    const close = (keep) => {
      if (!open) return;
      open = false;
      const title = input.value.trim();
      input.remove();
      if (keep && title && title !== record.title) this.actions.rename(record.id, title);
      else this.#draw();
      this.#list.querySelector(`li[data-id="${record.id}"] .title`)?.focus();
    };
    input.addEventListener('blur', () => close(true));
    input.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== 'Escape') return;
      event.preventDefault();
      close(event.key === 'Enter');
    });
    item.replaceChildren(input);
    input.focus();
    input.select();
  }
}

function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return 'Today';
  if (time >= midnight - DAY_MS) return 'Yesterday';
  return time >= midnight - 7 * DAY_MS ? 'Last seven days' : 'Earlier';
}
