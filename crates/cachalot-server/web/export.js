// A conversation as a file: Markdown of what is shown, or JSON of everything, other branches included.

import { el } from './dom.js';

/** The branch that is shown. */
export function toMarkdown(conversation) {
  const parts = [`# ${conversation.record.title}`];
  if (conversation.record.settings.system.trim()) parts.push('## System', conversation.record.settings.system.trim());
  for (const message of conversation.path()) {
    parts.push(message.role === 'user' ? '## User' : `## Assistant${message.model ? ` (${message.model})` : ''}`);
    for (const image of message.images ?? []) parts.push(`(image: ${image.name})`);
    if (message.reasoning) parts.push(`<details><summary>Reasoning</summary>\n\n${message.reasoning.trim()}\n\n</details>`);
    if (message.content) parts.push(message.content.trim());
    if (message.state === 'stopped') parts.push('(stopped)');
    if (message.error) parts.push(`(failed: ${message.error})`);
  }
  return `${parts.join('\n\n')}\n`;
}

export function toJson(conversation) {
  const { id, ...record } = conversation.record;
  const messages = [...conversation.messages.values()].sort((a, b) => a.order - b.order);
  return `${JSON.stringify({ format: 'cachalot-conversation-1', id, ...record, messages }, null, 2)}\n`;
}

/** Hands `text` to the browser as a download. */
export function download(conversation, extension, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const name = conversation.record.title.replace(/[^\p{L}\p{N} _-]/gu, '').trim().replace(/\s+/g, '-').slice(0, 60) || 'conversation';
  const link = el('a', { href: address, download: `${name}.${extension}` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
