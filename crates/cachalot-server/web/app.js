// The page: puts the parts together, follows the address, the keyboard and the theme. `#ID` in the address is the open conversation.

import { Api } from './api.js';
import { Chat } from './chat.js';
import { Composer } from './composer.js';
import { announce, byId, el, relabel } from './dom.js';
import { download, toJson, toMarkdown } from './export.js';
import { count } from './format.js';
import { Panel } from './panel.js';
import { SettingsDialog, summary } from './settings.js';
import { Sidebar } from './sidebar.js';
import { openStore } from './store.js';
import { Thread } from './thread.js';

const NOTICE_MS = 6000;
const MODELS_AGAIN_MS = 5000;
const THEMES = { auto: 'Theme: as the system’s', light: 'Theme: light', dark: 'Theme: dark' };
const THEME_ICONS = { auto: 'auto', light: 'sun', dark: 'moon' };

const api = new Api();
const store = await openStore();
const settings = new SettingsDialog();
const panel = new Panel(api);
let models = [];
let noticeTimer = null;

const chat = new Chat(api, store, {
  changed: show,
  updated: (message) => thread.update(message),
  ended: (message) => announce(message.state === 'done' ? 'The answer is complete.' : message.state === 'stopped' ? 'Stopped.' : ''),
  refused: (status, again) => status === 401 && askKey(again),
  say,
});

const thread = new Thread({
  edit: (message, text) => {
    chat.edit(message, text);
    composer.focus();
  },
  again: (message) => {
    chat.again(message);
    composer.focus();
  },
  turn: (message, step) => chat.turn(message, step),
});

const composer = new Composer({
  send: (text, images) => {
    if (!chat.ask(text, images)) return false;
    thread.toEnd();
    announce('Asked.');
    return true;
  },
  stop: () => chat.stop(),
  editLast: () => thread.editLast(),
  say,
});

const sidebar = new Sidebar({
  open: (id) => {
    location.hash = id;
    if (!sidebar.over) composer.focus();
  },
  rename: (id, title) => chat.rename(id, title),
  remove: askRemoval,
  search: (text) => chat.search(text),
  moved: () => panel.wake(),
});

/** Shows the state of everything but what streams. */
function show() {
  const { current } = chat;
  const title = current.record.title || 'New conversation';
  byId('title').textContent = title;
  document.title = current.empty ? 'cachalot' : `${title} – cachalot`;
  const address = current.empty ? '' : `#${current.id}`;
  if (!current.empty && location.hash !== address) history.replaceState(null, '', address);
  thread.show(current);
  composer.busy = chat.busy;
  sidebar.show(chat.records, current.id, chat.running);
  byId('export').disabled = current.empty;
  showFacts();
}

/** The line under the field: model, context in use, settings that differ from the server's. */
function showFacts() {
  const model = models.find((other) => other.id === chat.model);
  const used = chat.current.path().findLast((message) => message.usage)?.usage.total_tokens;
  const parts = [];
  if (model) parts.push(el('span', { text: model.id }));
  if (used !== undefined) parts.push(el('span', { text: model?.context_length ? `${count(used)} of ${count(model.context_length)} tokens` : `${count(used)} tokens` }));
  for (const text of summary(chat.current.record.settings)) parts.push(el('span', { text }));
  byId('facts').replaceChildren(...parts);
  byId('panel-context').textContent = model?.context_length ? `${count(model.context_length)} tokens` : '–';
}

function say(text) {
  const notice = byId('notice');
  notice.textContent = text;
  notice.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (notice.hidden = true), NOTICE_MS);
}

async function loadModels() {
  try {
    models = await api.models();
    if (models.length === 0) throw new Error('The server lists no model.');
    byId('offline').hidden = true;
  } catch (error) {
    byId('offline').textContent = error.message;
    byId('offline').hidden = false;
    if (error.status === 401) askKey(loadModels);
    else setTimeout(loadModels, MODELS_AGAIN_MS);
    return;
  }
  const select = byId('model');
  select.replaceChildren(...models.map((model) => el('option', { value: model.id, text: model.id })));
  byId('model-row').hidden = models.length < 2;
  byId('panel-model').textContent = models[0].id;
  chooseModel(models.some((model) => model.id === chat.model) ? chat.model : models[0].id);
}

function chooseModel(id) {
  chat.model = id;
  byId('model').value = id;
  byId('panel-model').textContent = id;
  composer.takesImages = models.find((model) => model.id === id).input_modalities?.includes('image') ?? false;
  showFacts();
}

/** Asks for the server's key, then goes on with `then`. */
function askKey(then) {
  const dialog = byId('key');
  byId('key-form').onsubmit = (event) => {
    event.preventDefault();
    api.key = byId('key-input').value;
    byId('key-input').value = '';
    dialog.close();
    then();
    if (then !== loadModels && chat.model === null) loadModels();
    panel.wake();
  };
  if (!dialog.open) dialog.showModal();
}

function askRemoval(id) {
  const record = chat.records.find((other) => other.id === id);
  if (!record) return;
  const dialog = byId('confirm');
  byId('confirm-text').textContent = `Delete “${record.title}”? It is kept nowhere else.`;
  byId('confirm-form').onsubmit = async (event) => {
    event.preventDefault();
    dialog.close();
    await chat.remove(id);
    if (location.hash === `#${id}`) history.replaceState(null, '', location.pathname + location.search);
    announce('Deleted.');
    if (!sidebar.over) composer.focus();
  };
  dialog.showModal();
}

function begin() {
  if (location.hash) history.pushState(null, '', location.pathname + location.search);
  chat.begin();
  sidebar.toggle(false);
  composer.focus();
}

async function follow() {
  const id = location.hash.slice(1);
  if (!id) chat.begin();
  else if (!(await chat.open(id))) {
    history.replaceState(null, '', location.pathname + location.search);
    chat.begin();
    say('This conversation is not kept in this browser.');
  }
}

function theme() {
  return document.documentElement.dataset.theme ?? 'auto';
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(theme()) + 1) % names.length];
  if (next === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem('cachalot.theme', next);
  } catch {
    // It holds until the page is closed.
  }
  relabel(byId('theme'), THEME_ICONS[next], THEMES[next]);
}

function key(event) {
  if (event.defaultPrevented || event.isComposing) return;
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === 'k') {
    event.preventDefault();
    if (!document.querySelector('dialog[open]')) begin();
  } else if (event.key === 'Escape' && !document.querySelector('dialog[open], :popover-open')) {
    if (sidebar.over) sidebar.toggle(false);
    else chat.stop();
  }
}

function listen() {
  document.addEventListener('keydown', key);
  addEventListener('hashchange', follow);
  addEventListener('popstate', follow);
  addEventListener('pagehide', () => chat.flush());
  document.addEventListener('visibilitychange', () => document.hidden && chat.flush());
  byId('new').addEventListener('click', begin);
  byId('theme').addEventListener('click', nextTheme);
  byId('model').addEventListener('change', (event) => chooseModel(event.target.value));
  byId('open-settings').addEventListener('click', () => settings.open(chat.current.record.settings, (accepted) => (chat.settings = accepted)));
  byId('key-cancel').addEventListener('click', () => byId('key').close());
  byId('confirm-cancel').addEventListener('click', () => byId('confirm').close());
  byId('export-markdown').addEventListener('click', () => exportAs('md', 'text/markdown', toMarkdown));
  byId('export-json').addEventListener('click', () => exportAs('json', 'application/json', toJson));
}

function exportAs(extension, type, text) {
  byId('export-menu').hidePopover();
  download(chat.current, extension, type, text(chat.current));
}

listen();
relabel(byId('theme'), THEME_ICONS[theme()], THEMES[theme()]);
composer.takesImages = null;
composer.busy = false;
if (!store.persistent) byId('forgetful').hidden = false;
await chat.refresh();
await follow();
composer.focus();
loadModels();
