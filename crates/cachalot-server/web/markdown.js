// Markdown blocks to DOM: headings, paragraphs, lists, quotes, tables, fenced code, rules, displayed TeX. HTML in the text is text.
// Left out, because models' text breaks rather than gains by them: indented code, underlined headings, reference links.

import { el, copyButton } from './dom.js';
import { highlight } from './highlight.js';
import { inline } from './inline.js';

const DEPTH_AT_MOST = 12;
const TEX_LINES_AT_MOST = 200;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DIVIDER = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** Shows a text that grows: blocks that did not change keep their nodes, so selections and scroll positions in them live on. */
export class MarkdownView {
  #root;
  #text = null;
  #shown = []; // {source, open, node}

  constructor(root) {
    this.#root = root;
  }

  update(text) {
    if (text === this.#text) return;
    this.#text = text;
    const blocks = scan(text.split(/\r\n|\n|\r/), 0);
    let same = 0;
    const unchanged = (shown, block) => shown && shown.source === block.source && shown.open === block.open;
    while (same < blocks.length && unchanged(this.#shown[same], blocks[same])) same += 1;
    for (const old of this.#shown.splice(same)) old.node.remove();
    for (const block of blocks.slice(same)) {
      const node = block.build();
      this.#root.append(node);
      this.#shown.push({ source: block.source, open: block.open, node });
    }
  }
}

/** The blocks of `lines`: {source, open, build()}, `open` if the end of the text ended it. */
function scan(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (lines[at].trim() === '') {
      at += 1;
      continue;
    }
    const reader = depth < DEPTH_AT_MOST ? READERS.find((candidate) => candidate.begins(lines, at)) : undefined;
    const { end, build, open = false } = (reader ?? PARAGRAPH).read(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join('\n'), open, build });
    at = end;
  }
  return blocks;
}

const build = (lines, depth) => scan(lines, depth).map((block) => block.build());

/** Does line `at` begin a block that ends a paragraph? Only a list from 1 does, or a line with a number in prose would. */
function interrupts(lines, at) {
  const item = ITEM.exec(lines[at]);
  if (item) return item[3] !== '' && (!/^\d/.test(item[2]) || /^1[.)]/.test(item[2]));
  return READERS.some((reader) => reader !== LIST && reader.begins(lines, at));
}

const PARAGRAPH = {
  read(lines, from) {
    let end = from + 1;
    while (end < lines.length && lines[end].trim() !== '' && !interrupts(lines, end)) end += 1;
    const text = lines.slice(from, end).map((line) => line.trimStart()).join('\n').trimEnd();
    return { end, build: () => el('p', {}, ...inline(text)) };
  },
};

const CODE = {
  begins: (lines, at) => FENCE.test(lines[at]),
  read(lines, from) {
    const [, fence, info] = FENCE.exec(lines[from]);
    const indent = /^ */.exec(lines[from])[0].length;
    const closes = (line) => {
      const text = line.trim();
      return text.length >= fence.length && text === fence[0].repeat(text.length);
    };
    let end = from + 1;
    while (end < lines.length && !closes(lines[end])) end += 1;
    const open = end === lines.length;
    const code = lines.slice(from + 1, end).map((line) => line.slice(Math.min(indent, /^ */.exec(line)[0].length))).join('\n');
    return { end: open ? end : end + 1, open, build: () => codeBlock(code, info.trim().split(/\s/)[0].slice(0, 24), open) };
  },
};

function codeBlock(code, language, open) {
  const body = el('code', {}, ...(open ? [code] : highlight(code, language)));
  const head = el('div', { class: 'code-head' }, el('span', { text: language || 'text' }), copyButton('Copy code', () => code));
  // Focusable, so that the keyboard can scroll it.
  return el('div', { class: 'code' }, head, el('pre', { tabindex: '0' }, body));
}

const HEADINGS = {
  begins: (lines, at) => HEADING.test(lines[at]),
  read(lines, from) {
    const level = HEADING.exec(lines[from])[1].length;
    let text = lines[from].trim().slice(level).trim();
    const bare = text.replace(/#{1,20}$/, '');
    if (bare === '' || /\s$/.test(bare)) text = bare.trim();
    // The page's own title is h1 and a message is h2.
    return { end: from + 1, build: () => el(`h${Math.min(6, level + 2)}`, { class: `level-${level}` }, ...inline(text)) };
  },
};

const RULES = {
  begins: (lines, at) => RULE.test(lines[at]),
  read: (lines, from) => ({ end: from + 1, build: () => el('hr') }),
};

const QUOTES = {
  begins: (lines, at) => QUOTE.test(lines[at]),
  read(lines, from, depth) {
    let end = from + 1;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    const inner = lines.slice(from, end).map((line) => line.replace(/^ {0,3}> ?/, ''));
    return { end, build: () => el('blockquote', {}, ...build(inner, depth + 1)) };
  },
};

const TEX = {
  begins: (lines, at) => /^\s*(\$\$|\\\[)/.test(lines[at]) && TEX.end(lines, at) > 0,
  /** The line after the one that closes it, 0 if none does. */
  end(lines, from) {
    const [opener] = /\$\$|\\\[/.exec(lines[from]);
    const closer = opener === '$$' ? /\$\$\s*$/ : /\\\]\s*$/;
    if (closer.test(lines[from].trim().slice(2))) return from + 1;
    for (let at = from + 1; at < Math.min(lines.length, from + TEX_LINES_AT_MOST); at += 1) {
      if (closer.test(lines[at])) return at + 1;
    }
    return 0;
  },
  read(lines, from) {
    const end = TEX.end(lines, from);
    const text = lines.slice(from, end).map((line) => line.trim()).join('\n');
    return { end, build: () => el('pre', { class: 'math', tabindex: '0', text }) };
  },
};

const LIST = {
  begins: (lines, at) => ITEM.test(lines[at]),
  read(lines, from, depth) {
    const [, space, marker] = ITEM.exec(lines[from]);
    const kind = marker.slice(-1);
    const items = [];
    let loose = false;
    let at = from;
    while (at < lines.length) {
      const next = ITEM.exec(lines[at]);
      if (!next || next[2].slice(-1) !== kind || next[1].length > space.length + 1 || RULE.test(lines[at])) break;
      const item = readItem(lines, at, next);
      items.push(item.lines);
      loose ||= item.loose || (item.blank && ITEM.exec(lines[item.end] ?? '')?.[2].slice(-1) === kind);
      at = item.end;
    }
    const ordered = /\d/.test(marker);
    const start = ordered && Number.parseInt(marker, 10) !== 1 ? Number.parseInt(marker, 10) : null;
    const view = () => el(ordered ? 'ol' : 'ul', { start }, ...items.map((inner) => listItem(inner, loose, depth)));
    return { end: at, build: view };
  },
};

/** One item: its lines without their indent, whether blank lines part its blocks (`loose`) or follow it (`blank`). */
function readItem(lines, from, [whole, space, marker, gap]) {
  const width = space.length + marker.length + (gap.length > 4 || gap === '' ? 1 : gap.length);
  // Two columns count as nested even where CommonMark wants three.
  const nested = Math.min(width, space.length + 2);
  const indentOf = (line) => /^ */.exec(line)[0].length;
  const inner = [lines[from].slice(whole.length)];
  let blank = false;
  let loose = false;
  let at = from + 1;
  for (; at < lines.length; at += 1) {
    if (lines[at].trim() === '') {
      blank = true;
      inner.push('');
      continue;
    }
    const indent = indentOf(lines[at]);
    if (indent < nested && (blank || ITEM.test(lines[at]) || interrupts(lines, at))) break;
    loose ||= blank && !ITEM.test(lines[at]);
    blank = false;
    inner.push(lines[at].slice(Math.min(indent, width)));
  }
  while (inner.at(-1) === '') inner.pop();
  return { lines: inner, end: at, blank, loose };
}

function listItem(lines, loose, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0] ?? '');
  const nodes = build(task ? [lines[0].slice(4), ...lines.slice(1)] : lines, depth + 1);
  // A tight item's text stands in it without a paragraph.
  const content = loose ? nodes : nodes.flatMap((node) => (node.tagName === 'P' ? [...node.childNodes] : [node]));
  const box = task && el('input', { type: 'checkbox', disabled: true, checked: task[1] !== ' ', 'aria-label': task[1] === ' ' ? 'open' : 'done' });
  return el('li', { class: task ? 'task' : null }, box, ...content);
}

const TABLE = {
  begins: (lines, at) => lines[at].includes('|') && lines[at + 1]?.includes('-') && DIVIDER.test(lines[at + 1])
    && cells(lines[at]).length === cells(lines[at + 1]).length,
  read(lines, from) {
    let end = from + 2;
    while (end < lines.length && lines[end].trim() !== '' && lines[end].includes('|')) end += 1;
    const rows = lines.slice(from, end).map(cells);
    const sides = rows[1].map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'end') : null));
    const row = (tag, texts) => el('tr', {}, ...sides.map((side, index) => el(tag, { class: side, scope: tag === 'th' ? 'col' : null }, ...inline(texts[index] ?? ''))));
    const view = () => el('div', { class: 'table', tabindex: '0' }, el('table', {},
      el('thead', {}, row('th', rows[0])), el('tbody', {}, ...rows.slice(2).map((texts) => row('td', texts)))));
    return { end, build: view };
  },
};

/** The cells of a row: bars part them, but for escaped ones and those in code. */
function cells(line) {
  const parts = [''];
  let code = false;
  const text = line.trim().replace(/^\|/, '');
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === '\\' && text[at + 1] === '|') {
      parts[parts.length - 1] += '|';
      at += 1;
      continue;
    }
    if (text[at] === '`') code = !code;
    if (text[at] === '|' && !code) parts.push('');
    else parts[parts.length - 1] += text[at];
  }
  if (parts.length > 1 && parts.at(-1).trim() === '') parts.pop();
  return parts.map((part) => part.trim());
}

const READERS = [CODE, HEADINGS, RULES, QUOTES, TEX, LIST, TABLE];
