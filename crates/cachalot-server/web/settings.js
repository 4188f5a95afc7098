// A conversation's system prompt and sampling settings: the dialog, its checks, and the request fields they become. What is left
// empty is not sent, so the server's default holds.

import { byId } from './dom.js';

const STORED = 'cachalot.settings';
/** Numbers in the order of the dialog: whether whole, bounds as the server has them (`above` is excluded), and how they are told. */
const NUMBERS = {
  temperature: { from: 0, to: 2, told: 'temperature' },
  top_p: { above: 0, to: 1, told: 'top-p' },
  top_k: { whole: true, from: 0, to: 2 ** 31 - 1, told: 'top-k' },
  min_p: { from: 0, to: 1, told: 'min-p' },
  presence_penalty: { from: -2, to: 2, told: 'presence penalty' },
  frequency_penalty: { from: -2, to: 2, told: 'frequency penalty' },
  max_tokens: { whole: true, from: 1, to: 393_216, told: 'at most', unit: ' tokens' },
  seed: { whole: true, from: 0, to: Number.MAX_SAFE_INTEGER, told: 'seed' },
};
const FIELDS = ['system', 'thinking', 'effort', ...Object.keys(NUMBERS)];

/** All fields of `stored`, which may be of an older page or of no page at all; what it lacks is empty. */
const complete = (stored) => Object.fromEntries(FIELDS.map((name) => [name, typeof stored?.[name] === 'string' ? stored[name] : '']));

/** What a new conversation begins with. */
export function defaults() {
  try {
    return complete(JSON.parse(localStorage.getItem(STORED)));
  } catch {
    return complete({});
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
  for (const name of Object.keys(NUMBERS)) if (settings[name]) fields[name] = Number(settings[name]);
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
  for (const [name, { told, unit = '' }] of Object.entries(NUMBERS)) if (settings[name]) parts.push(`${told} ${settings[name]}${unit}`);
  if (settings.system.trim()) parts.push('system prompt');
  return parts;
}

/** What is wrong with the value of a field, or ''. */
function problem(name, text) {
  if (text === '' || !(name in NUMBERS)) return '';
  const { whole, from, above, to } = NUMBERS[name];
  const value = Number(text);
  const fits = (whole ? /^\d+$/.test(text) : Number.isFinite(value)) && value <= to && (above === undefined ? value >= from : value > above);
  if (fits) return '';
  return `A ${whole ? 'whole ' : ''}number ${above === undefined ? `from ${from} to` : `above ${above}, at most`} ${to}`;
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
    byId('settings-reset').addEventListener('click', () => this.#fill(complete({})));
    this.#form.addEventListener('input', () => this.#follow());
  }

  /** Shows `settings`; `done(settings)` is called if they are accepted. */
  open(settings, done) {
    this.#done = done;
    byId('settings-keep').checked = false;
    this.#fill(complete(settings));
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
