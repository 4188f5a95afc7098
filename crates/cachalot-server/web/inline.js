// Inline Markdown to DOM nodes: emphasis, code, links, bare addresses, line breaks. Text of a model only ever becomes text nodes,
// and an address only if it is absolute http, https or mailto. Images become links: the page asks no other machine for anything.
//
// Close to CommonMark, with differences that models' text asks for: a line break is a break; `*` needs no punctuation rules, so that
// bold works inside Chinese and Japanese text; TeX between \( \), \[ \] or $ $ is shown as it is written, unharmed.
// Work is linear: every search that fails is remembered or bounded.

import { el } from './dom.js';

const SCHEMES = new Set(['http:', 'https:', 'mailto:']);
const OPEN_RUNS_AT_MOST = 60;
const ADDRESS_AT_MOST = 2000;
const PARENTHESES_AT_MOST = 32;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const TAGS = { '*': ['em', 'strong'], _: ['em', 'strong'], '~': ['del', 'del'] };

/** The nodes of a run of inline text. */
export function inline(text) {
  return new Inline(text).run();
}

/** The address as the browser will open it, or null if it is relative, unreadable or of another scheme. */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = [];
    this.pending = '';
    this.runs = []; // open delimiter runs: {index into nodes, char, count}
    this.brackets = []; // {index into nodes, runs, at, image}
    this.missing = new Set(); // closers known not to occur any more
  }

  run() {
    while (this.at < this.text.length) {
      if (!this.special(this.text[this.at])) this.pending += this.text[this.at++];
    }
    this.flush();
    return this.nodes;
  }

  /** Handles the character if it means something here; otherwise it is text. */
  special(char) {
    switch (char) {
      case '\\': return this.backslash();
      case '`': return this.code();
      case '$': return this.dollar();
      case '*': case '_': case '~': return this.emphasis(char);
      case '!': return this.text[this.at + 1] === '[' && this.open(true);
      case '[': return this.open(false);
      case ']': return this.close();
      case '<': return this.angle();
      case '\n': return this.line();
      case 'h': return this.bare();
      default: return false;
    }
  }

  flush() {
    if (this.pending) this.nodes.push(document.createTextNode(this.pending));
    this.pending = '';
  }

  push(node, length) {
    this.flush();
    this.nodes.push(node);
    this.at += length;
    return true;
  }

  /** Index of `closer` from `from` on, -1 if there is none; a second search for what is missing costs nothing. */
  find(closer, from) {
    if (this.missing.has(closer)) return -1;
    const index = this.text.indexOf(closer, from);
    if (index < 0) this.missing.add(closer);
    return index;
  }

  backslash() {
    const next = this.text[this.at + 1] ?? '';
    if (next === '(' || next === '[') {
      const end = this.find(next === '(' ? '\\)' : '\\]', this.at + 2);
      if (end > 0) return this.math(end + 2);
    }
    if (next === '\n') this.at += 1;
    else if (PUNCTUATION.test(next)) {
      this.pending += next;
      this.at += 2;
    } else return false;
    return true;
  }

  math(end) {
    return this.push(el('code', { class: 'math', text: this.text.slice(this.at, end) }), end - this.at);
  }

  /** TeX between dollars, by pandoc's rule, so that prices stay prices. */
  dollar() {
    const width = this.text[this.at + 1] === '$' ? 2 : 1;
    const from = this.at + width;
    const end = this.find('$'.repeat(width), from);
    if (end <= from || /\s/.test(this.text[from]) || /\s/.test(this.text[end - 1])) return false;
    if (width === 1 && (/\d/.test(this.text[end + 1] ?? '') || this.text.slice(from, end).includes('\n'))) return false;
    return this.math(end + width);
  }

  code() {
    const ticks = /^`+/.exec(this.text.slice(this.at, this.at + 100))[0];
    const from = this.at + ticks.length;
    let end = this.find(ticks, from);
    // A run of the same length, not a part of a longer one.
    while (end >= 0 && this.text[end + ticks.length] === '`') {
      let past = end;
      while (this.text[past] === '`') past += 1;
      end = this.find(ticks, past);
    }
    if (end < 0) {
      this.pending += ticks;
      this.at = from;
      return true;
    }
    let code = this.text.slice(from, end).replace(/\n/g, ' ');
    if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
    return this.push(el('code', { text: code }), end + ticks.length - this.at);
  }

  emphasis(char) {
    let end = this.at;
    while (this.text[end] === char) end += 1;
    const count = end - this.at;
    const before = this.text[this.at - 1] ?? ' ';
    const after = this.text[end] ?? ' ';
    if (char === '~' && count !== 2) return false;
    let opens = !/\s/.test(after);
    let closes = !/\s/.test(before);
    if (char === '_') {
      opens &&= !WORD.test(before);
      closes &&= !WORD.test(after);
    }
    let left = count;
    if (closes) left = this.wrap(char, left);
    this.at = end;
    if (left === 0) return true;
    if (opens && this.runs.length < OPEN_RUNS_AT_MOST) {
      this.flush();
      this.runs.push({ index: this.nodes.length, char, count: left });
      this.nodes.push(document.createTextNode(char.repeat(left)));
    } else this.pending += char.repeat(left);
    return true;
  }

  /** Closes open runs of `char` with a run of `count`; returns how many characters remain unused. */
  wrap(char, count) {
    while (count > 0) {
      let top = this.runs.length - 1;
      while (top >= 0 && this.runs[top].char !== char) top -= 1;
      if (top < 0) break;
      const opener = this.runs[top];
      const used = Math.min(2, opener.count, count);
      this.flush();
      if (opener.index + 1 === this.nodes.length) break;
      const content = this.nodes.splice(opener.index + 1);
      this.nodes.push(el(TAGS[char][used - 1], {}, ...content));
      this.runs.length = top + 1;
      while (this.brackets.at(-1)?.index > opener.index) this.brackets.pop();
      opener.count -= used;
      count -= used;
      if (opener.count > 0) this.nodes[opener.index].data = char.repeat(opener.count);
      else {
        this.nodes.splice(opener.index, 1);
        this.runs.pop();
      }
    }
    return count;
  }

  open(image) {
    const width = image ? 2 : 1;
    this.flush();
    if (this.brackets.length < OPEN_RUNS_AT_MOST) this.brackets.push({ index: this.nodes.length, runs: this.runs.length, at: this.at + width, image });
    return this.push(document.createTextNode(image ? '![' : '['), width);
  }

  close() {
    const bracket = this.brackets.pop();
    const target = bracket && this.target(this.at + 1);
    if (!target) return false;
    this.flush();
    const label = this.nodes.splice(bracket.index + 1);
    this.nodes.pop();
    this.runs.length = Math.min(this.runs.length, bracket.runs);
    const address = safeAddress(target.address);
    if (address === null) {
      // Not an address that may be opened: it stays what was written.
      this.pending += this.text.slice(bracket.at - (bracket.image ? 2 : 1), target.end);
      this.at = target.end;
      return true;
    }
    const link = anchor(address, label);
    if (bracket.image) link.prepend('Image: ');
    return this.push(link, target.end - this.at);
  }

  /** `(address "title")` at `from`: {address, end}, or null. */
  target(from) {
    if (this.text[from] !== '(') return null;
    const part = this.text.slice(from, from + ADDRESS_AT_MOST);
    let end = 1;
    let address;
    if (part[end] === '<') {
      const past = part.search(/[>\n]/);
      if (part[past] !== '>') return null;
      address = part.slice(2, past);
      end = past + 1;
    } else {
      for (let depth = 0; end < part.length && !/\s/.test(part[end]); end += 1) {
        if (part[end] === '(') {
          depth += 1;
          if (depth > PARENTHESES_AT_MOST) return null;
        } else if (part[end] === ')' && (depth -= 1) < 0) break;
      }
      address = part.slice(1, end);
    }
    const rest = /^(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/.exec(part.slice(end));
    return rest && { address, end: from + end + rest[0].length };
  }

  angle() {
    const part = this.text.slice(this.at, this.at + ADDRESS_AT_MOST);
    const found = /^<((?:https?:\/\/|mailto:)[^\s<>]*)>/i.exec(part);
    const address = found && safeAddress(found[1]);
    if (address) return this.push(anchor(address, [found[1]]), found[0].length);
    const br = /^<br ?\/?>/i.exec(part);
    return br ? this.push(el('br'), br[0].length) : false;
  }

  line() {
    this.pending = this.pending.replace(/ {1,20}$/, '');
    return this.push(el('br'), 1);
  }

  bare() {
    if (WORD.test(this.text[this.at - 1] ?? ' ')) return false;
    const found = /^https?:\/\/[^\s<>"`*|\u3000-\u303f\uff00-\uffef]+/.exec(this.text.slice(this.at, this.at + ADDRESS_AT_MOST));
    if (!found) return false;
    let text = found[0];
    // What ends a sentence or closes a parenthesis that the address did not open is no part of it.
    while (/[.,:;!?'\]]$/.test(text) || (text.endsWith(')') && text.split(')').length > text.split('(').length)) text = text.slice(0, -1);
    const address = safeAddress(text);
    return address ? this.push(anchor(address, [text]), text.length) : false;
  }
}

/** A link that opens in another tab and tells it nothing about this one; links inside its label become text. */
function anchor(address, label) {
  const link = el('a', { href: address, title: address, target: '_blank', rel: 'noopener noreferrer' }, ...label);
  if (!link.textContent) link.textContent = address;
  for (const inner of link.querySelectorAll('a')) inner.replaceWith(...inner.childNodes);
  return link;
}
