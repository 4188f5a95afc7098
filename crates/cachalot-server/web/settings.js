// A conversation's system prompt and sampling settings: the dialog, its checks, and the request fields they become. What is left
// empty is not sent, so the server's default holds.

import { byId } from './dom.js';

const STORED = 'cachalot.settings';
const EMPTY = { system: '', temperature: '', top_p: '', max_tokens: '', seed: '', thinking: '', effort: '' };
const FIELDS = Object.keys(EMPTY);

/** What a new conversation begins with. */
export function defaults() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORED) ?? '{}');
    return Object.fromEntries(FIELDS.map((name) => [name, typeof stored[name] === 'string' ? stored[name] : EMPTY[name]]));
  } catch {
    return { ...EMPTY };
  }
}

function keep(settings) {
  try {
    localStorage.setItem(STORED, JSON.stringify(settings));
    return true;
  } catch {
    return false;
  }
}

/** Fields of a chat completions request. */
export function requestFields(settings) {
  const fields = {};
  for (const name of ['temperature', 'top_p', 'max_tokens', 'seed']) if (settings[name] !== '') fields[name] = Number(settings[name]);
  if (settings.thinking) fields.thinking = { type: settings.thinking };
  if (settings.effort && settings.thinking !== 'disabled') fields.reasoning_effort = settings.effort;
  return fields;
}

/** The settings that differ from the server's, in words; empty if none does. */
export function summary(settings) {
  const parts = [];
  if (settings.thinking === 'disabled') parts.push('no reasoning');
  else if (settings.effort) parts.push(`${settings.effort} effort`);
  else if (settings.thinking === 'enabled') parts.push('reasoning');
  if (settings.temperature !== '') parts.push(`temperature ${settings.temperature}`);
  if (settings.top_p !== '') parts.push(`top-p ${settings.top_p}`);
  if (settings.max_tokens !== '') parts.push(`at most ${settings.max_tokens} tokens`);
  if (settings.seed !== '') parts.push(`seed ${settings.seed}`);
  if (settings.system.trim()) parts.push('system prompt');
  return parts;
}

/** What is wrong with the value of a field, or ''. Bounds are those of the protocol. */
function problem(name, text) {
  if (text === '') return '';
  const value = Number(text);
  const whole = /^\d+$/.test(text) && Number.isSafeInteger(value);
  if (name === 'temperature' && !(value >= 0 && value <= 2)) return 'A number from 0 to 2';
  if (name === 'top_p' && !(value > 0 && value <= 1)) return 'A number above 0, at most 1';
  if (name === 'max_tokens' && !(whole && value >= 1 && value <= 393_216)) return 'A whole number from 1 to 393216';
  if (name === 'seed' && !whole) return 'A whole number from 0 to 9007199254740991';
  return '';
}

export class SettingsDialog {
  #dialog = byId('settings');
  #form = byId('settings-form');
  #done = null;

  constructor() {
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#close();
    });
    byId('settings-cancel').addEventListener('click', () => this.#dialog.close());
    byId('settings-reset').addEventListener('click', () => this.#fill(EMPTY));
    this.#form.addEventListener('input', () => this.#follow());
  }

  /** Shows `settings`; `done(settings)` is called if they are accepted. */
  open(settings, done) {
    this.#done = done;
    byId('settings-keep').checked = false;
    this.#fill(settings);
    this.#dialog.showModal();
  }

  #fill(settings) {
    for (const name of FIELDS) this.#form.elements[name].value = settings[name];
    this.#follow();
  }

  #follow() {
    const { elements } = this.#form;
    elements.effort.disabled = elements.thinking.value === 'disabled';
    for (const name of FIELDS) this.#complain(name, '');
  }

  #complain(name, text) {
    const line = byId(`${name}-problem`);
    if (!line) return;
    line.textContent = text;
    this.#form.elements[name].setAttribute('aria-invalid', text !== '');
  }

  #close() {
    const { elements } = this.#form;
    const settings = Object.fromEntries(FIELDS.map((name) => [name, name === 'system' ? elements[name].value : elements[name].value.trim()]));
    const problems = FIELDS.map((name) => [name, problem(name, settings[name])]).filter(([, text]) => text);
    for (const [name, text] of problems) this.#complain(name, text);
    if (problems.length > 0) return elements[problems[0][0]].focus();
    if (byId('settings-keep').checked) keep(settings);
    this.#dialog.close();
    this.#done(settings);
  }
}
