// Small helpers over the DOM. Nothing here, or anywhere on the page, turns a string into markup.

const SVG = 'http://www.w3.org/2000/svg';
const SPRITE = new URL('icons.svg', import.meta.url).href;

export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes and children. `text` sets the text, `on` is {event: handler}; true sets an empty
 * attribute, null and false set none. Children are nodes or strings; null is skipped.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'text') node.textContent = value;
    else if (name === 'on') {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** The drawing `name` of icons.svg, hidden from screen readers: what it is on carries the label. */
export function icon(name) {
  return svg('svg', { class: 'icon', 'aria-hidden': 'true' }, svg('use', { href: `${SPRITE}#${name}` }));
}

export function iconButton(name, label, onClick, attributes = {}) {
  const button = el('button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label, ...attributes }, icon(name));
  button.addEventListener('click', onClick);
  return button;
}

/** Gives a button another drawing and label. */
export function relabel(button, name, label) {
  button.querySelector('use').setAttribute('href', `${SPRITE}#${name}`);
  button.setAttribute('aria-label', label);
  button.title = label;
}

/** Says `text` to a screen reader, without showing it. */
export function announce(text) {
  byId('announce').textContent = text;
}

/** Copies text; returns whether it did. Pages from other machines over HTTP have no clipboard interface, hence the second way. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const area = el('textarea', { class: 'unseen', 'aria-hidden': 'true' });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    focused?.focus();
    return done;
  }
}

/** A button that copies what `text()` returns and says so for a moment. */
export function copyButton(label, text) {
  const button = iconButton('copy', label, async () => {
    if (button.dataset.busy) return;
    const done = await copyText(text());
    button.dataset.busy = '1';
    const use = button.querySelector('use');
    use.setAttribute('href', `${SPRITE}#${done ? 'check' : 'close'}`);
    button.title = done ? 'Copied' : 'The browser refused to copy';
    announce(button.title);
    setTimeout(() => {
      use.setAttribute('href', `${SPRITE}#copy`);
      button.title = label;
      delete button.dataset.busy;
    }, 1500);
  });
  return button;
}
