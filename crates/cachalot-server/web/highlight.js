// A light highlighter: comments, strings, numbers and keywords of common languages. It colours, it does not parse; an unknown language
// stays plain. Returns DOM nodes only.

import { el } from './dom.js';

const LENGTH_AT_MOST = 60_000;
const words = (text) => text.split(' ');

const C_WORDS = 'auto bool break case catch char class const constexpr continue default delete do double else enum extern false final float for goto if include inline int long namespace new nullptr override private protected public return short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void volatile while NULL size_t';
const JAVA_WORDS = 'abstract any as async await base boolean break byte case catch char class const continue default do double else enum extends false final finally float for foreach fun func function get go goto if implements import in int interface internal is let long map module namespace new nil null object out override package private protected public range readonly record return sealed set short static string struct super switch this throw throws true try type typeof undefined val var virtual void while yield chan defer select fallthrough export from of instanceof delete guard init self';
const RUST_WORDS = 'as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while bool char f32 f64 i8 i16 i32 i64 isize str u8 u16 u32 u64 usize String Vec Option Result Some None Ok Err';
const PYTHON_WORDS = 'False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield print';
const SHELL_WORDS = 'if then else elif fi for in do done while until case esac function return export local readonly set unset shift exit source echo cd sudo';
const SQL_WORDS = 'select from where and or not null is in as on join left right inner outer full cross group by order having limit offset insert into values update set delete create table index view drop alter add column primary key foreign references unique default distinct union all case when then else end exists between like asc desc with count sum avg min max integer int text varchar boolean';

// The end of the text; `$` is the end of a line here.
const END = '(?![\\s\\S])';
const DOUBLE = '"(?:[^"\\\\\\n]|\\\\.)*"?';
const SINGLE = "'(?:[^'\\\\\\n]|\\\\.)*'?";
const BACKTICK = '`(?:[^`\\\\]|\\\\[\\s\\S])*`?';
const SLASHES = `\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|${END})`;
// After a quote that begins a lifetime, Rust has no closing one.
const RUST_CHAR = "'(?:[^'\\\\\\n]|\\\\[^\\n]{1,8})'";

const C_LIKE = { comment: SLASHES, string: `${DOUBLE}|${SINGLE}`, words: words(C_WORDS) };
const JAVA_LIKE = { comment: SLASHES, string: `${DOUBLE}|${SINGLE}|${BACKTICK}`, words: words(JAVA_WORDS) };
const HASH = { comment: '#[^\\n]*', string: `${DOUBLE}|${SINGLE}` };
const MARKUP = { comment: `<!--[\\s\\S]*?(?:-->|${END})`, string: `${DOUBLE}|${SINGLE}`, keyword: '<\\/?[A-Za-z][\\w:-]*|\\/?>', words: [] };

const LANGUAGES = {
  rust: { comment: SLASHES, string: `${DOUBLE}|${RUST_CHAR}`, words: words(RUST_WORDS) },
  python: { comment: '#[^\\n]*', string: `"""[\\s\\S]*?(?:"""|${END})|'''[\\s\\S]*?(?:'''|${END})|${DOUBLE}|${SINGLE}`, words: words(PYTHON_WORDS) },
  c: C_LIKE,
  java: JAVA_LIKE,
  shell: { ...HASH, comment: '(?<=^|[\\s;])#[^\\n]*', words: words(SHELL_WORDS) },
  sql: { comment: `--[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|${END})`, string: `${DOUBLE}|${SINGLE}`, words: words(SQL_WORDS), anyCase: true },
  json: { comment: SLASHES, string: DOUBLE, words: words('true false null') },
  config: { ...HASH, comment: '[#;][^\\n]*', words: words('true false yes no null on off') },
  css: { comment: `\\/\\*[\\s\\S]*?(?:\\*\\/|${END})`, string: `${DOUBLE}|${SINGLE}`, keyword: '@[\\w-]+|--[\\w-]+', words: [] },
  markup: MARKUP,
  // In a diff the signs of lines are all there is.
  diff: { comment: '^(?:@@|diff|index|---|\\+\\+\\+)[^\\n]*', string: '^\\+[^\\n]*', keyword: '^-[^\\n]*', words: [] },
};

const NAMES = {
  rust: 'rs rust', python: 'py python python3', c: 'c h cpp cc hpp c++ cuda objc', shell: 'sh bash zsh shell console fish dockerfile make makefile',
  java: 'js mjs jsx javascript ts tsx typescript java kotlin kt go golang swift csharp cs c# scala dart php', sql: 'sql sqlite postgres postgresql mysql',
  json: 'json jsonc json5', config: 'toml yaml yml ini conf cfg properties', css: 'css scss less', markup: 'html xml svg vue xhtml', diff: 'diff patch',
};

const ALIASES = new Map(Object.entries(NAMES).flatMap(([language, names]) => words(names).map((name) => [name, language])));
const scanners = new Map();

function scanner(language) {
  if (!scanners.has(language)) {
    const rules = LANGUAGES[language];
    const keyword = rules.words.length ? `\\b(?:${rules.words.join('|')})\\b` : rules.keyword;
    const source = `(?<comment>${rules.comment})|(?<string>${rules.string})|(?<keyword>${keyword})|(?<number>\\b\\d[\\w.]*\\b)`;
    scanners.set(language, new RegExp(source, rules.anyCase ? 'gimu' : 'gmu'));
  }
  return scanners.get(language);
}

/** Nodes for `code`, which they spell exactly. */
export function highlight(code, language) {
  const known = ALIASES.get(language.toLowerCase());
  if (!known || code.length > LENGTH_AT_MOST) return [code];
  const nodes = [];
  let at = 0;
  for (const match of code.matchAll(scanner(known))) {
    const [kind] = Object.entries(match.groups).find(([, text]) => text !== undefined);
    nodes.push(code.slice(at, match.index), el('span', { class: `hl-${kind}`, text: match[0] }));
    at = match.index + match[0].length;
  }
  nodes.push(code.slice(at));
  return nodes;
}
