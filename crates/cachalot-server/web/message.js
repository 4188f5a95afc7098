// One message on the page. A user's text is shown as typed; an answer is Markdown under its folded reasoning. The view
// shows a message and reports what was asked for; it changes nothing.

import { copyButton, el, icon, iconButton } from './dom.js';
import { count, duration, rate } from './format.js';
import { speedOf } from './generation.js';
import { MarkdownView } from './markdown.js';

const FINISHES = {
  length: 'Ended at the token limit.',
  content_filter: 'Ended by the server’s filter.',
  tool_calls: 'Ended with a tool call, which this page cannot answer.',
};

/** `actions`: edit(message, text), again(message), turn(message, -1 or 1). `place` is [index, how many] among its siblings. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = el('article', { class: `message ${message.role}`, 'data-id': message.id });
    this.element.append(el('h2', { class: 'unseen', text: message.role === 'user' ? 'You' : 'Answer' }));
    this.body = el('div', { class: message.role === 'user' ? 'bubble' : 'answer' });
    this.notes = el('div', { class: 'notes' });
    this.foot = el('div', { class: 'actions' });
    this.element.append(this.body, this.notes, this.foot);
    if (message.role === 'user') this.#showUser();
    else this.#prepareAnswer();
  }

  /** Shows the message as it is now. */
  update(place) {
    if (this.message.role === 'assistant') this.#updateAnswer();
    if (place) this.#updateFoot(place);
  }

  #showUser() {
    const { images, content } = this.message;
    if (images?.length) {
      this.body.append(el('div', { class: 'pictures' }, ...images.map((image) => el('img', { src: image.url, alt: image.name }))));
    }
    if (content) this.body.append(el('p', { text: content }));
  }

  /** Turns a question into a field; Enter or the button sends, Escape leaves it as it was. */
  edit() {
    if (this.editor) return this.editor.focus();
    const area = el('textarea', { 'aria-label': 'Edit the message', rows: '1' });
    area.value = this.message.content;
    const close = () => {
      this.editor = null;
      form.replaceWith(this.body);
      this.element.classList.remove('editing');
    };
    const cancel = el('button', { type: 'button', class: 'plain', text: 'Cancel', on: { click: close } });
    const form = el('form', { class: 'editor' }, area, el('div', { class: 'row' }, cancel, el('button', { class: 'primary', text: 'Send' })));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      const text = area.value.trim();
      if (!text && !this.message.images?.length) return;
      close();
      this.actions.edit(this.message, text);
    });
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        event.preventDefault();
        close();
        this.foot.querySelector('button')?.focus();
      } else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    area.addEventListener('input', () => grow(area));
    this.body.replaceWith(form);
    this.element.classList.add('editing');
    this.editor = area;
    grow(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #prepareAnswer() {
    this.reasoningText = el('div', { class: 'prose' });
    this.reasoningLabel = el('span');
    const summary = el('summary', {}, icon('right'), this.reasoningLabel);
    this.reasoning = el('details', { class: 'reasoning', hidden: true }, summary, el('div', { class: 'reasoning-text' }, this.reasoningText));
    // What the reader opened or closed stays so.
    summary.addEventListener('click', () => (this.chosen = true));
    this.waiting = el('p', { class: 'waiting' }, el('span', { class: 'dots', 'aria-hidden': 'true' }, el('i'), el('i'), el('i')), el('span', { text: 'Waiting for the first token' }));
    this.prose = el('div', { class: 'prose' });
    this.body.append(this.reasoning, this.waiting, this.prose);
    this.reasoningView = new MarkdownView(this.reasoningText);
    this.proseView = new MarkdownView(this.prose);
  }

  #updateAnswer() {
    const { message } = this;
    const streaming = message.state === 'streaming';
    const thinking = streaming && message.content === '';
    this.element.classList.toggle('streaming', streaming);
    this.element.setAttribute('aria-busy', streaming);
    this.waiting.hidden = !streaming || message.content !== '' || message.reasoning !== '';
    this.reasoning.hidden = message.reasoning === '';
    if (!this.chosen) this.reasoning.open = thinking;
    this.reasoning.classList.toggle('live', thinking);
    const took = message.timing?.reasoning;
    this.reasoningLabel.textContent = thinking ? 'Reasoning …' : took ? `Reasoning, ${duration(took)}` : 'Reasoning';
    if (this.reasoning.open || !streaming) this.reasoningView.update(message.reasoning);
    if (thinking) this.reasoningText.parentNode.scrollTop = this.reasoningText.parentNode.scrollHeight;
    this.proseView.update(message.content);
    // An alert is read out whenever it is made anew.
    const noted = `${message.state}/${message.error}/${message.finish}`;
    if (this.noted !== noted) this.notes.replaceChildren(...this.#noteNodes());
    this.noted = noted;
  }

  #noteNodes() {
    const { message } = this;
    if (message.state === 'failed') {
      const again = el('button', { type: 'button', class: 'plain retry', on: { click: () => this.actions.again(message) } }, icon('again'), 'Try again');
      return [el('div', { class: 'problem', role: 'alert' }, el('p', { text: message.error }), again)];
    }
    if (message.state === 'stopped') return [el('p', { class: 'note', text: 'Stopped.' })];
    const note = FINISHES[message.finish];
    return note ? [el('p', { class: 'note', text: note })] : [];
  }

  #updateFoot([index, siblings]) {
    const { message, actions } = this;
    const streaming = message.state === 'streaming';
    const key = `${index}/${siblings}/${message.state}/${Boolean(message.content)}`;
    if (this.footKey === key) return;
    this.footKey = key;
    const focused = this.foot.contains(document.activeElement) ? document.activeElement.getAttribute('aria-label') : null;
    const parts = [];
    if (siblings > 1) {
      const what = message.role === 'user' ? 'version' : 'answer';
      parts.push(el('span', { class: 'branches' },
        iconButton('left', `Previous ${what}`, () => actions.turn(message, -1), { disabled: index === 0 }),
        el('span', { text: `${index + 1}/${siblings}`, 'aria-label': `${what} ${index + 1} of ${siblings}` }),
        iconButton('right', `Next ${what}`, () => actions.turn(message, 1), { disabled: index === siblings - 1 })));
    }
    if (message.content) parts.push(copyButton(message.role === 'user' ? 'Copy message' : 'Copy answer', () => message.content));
    if (message.role === 'user') parts.push(iconButton('pencil', 'Edit message', () => this.edit()));
    else if (!streaming && message.state !== 'failed') parts.push(iconButton('again', 'Answer again', () => actions.again(message)));
    if (message.role === 'assistant' && !streaming) parts.push(el('span', { class: 'figures' }, ...figures(message).map((text) => el('span', { text }))));
    this.foot.replaceChildren(...parts);
    if (focused) this.foot.querySelector(`[aria-label="${focused}"]`)?.focus();
  }
}

/** What the answer took, in words; the most telling first. */
function figures(message) {
  const parts = [];
  const tokens = message.usage?.completion_tokens;
  const speed = speedOf(message);
  if (tokens !== undefined) parts.push(`${count(tokens)} tokens`);
  if (speed !== null) parts.push(`${rate(speed)} tokens/s`);
  if (message.timing) parts.push(`${duration(message.timing.first)} to the first`);
  return parts;
}

/** Makes a textarea as high as its text, up to what the style allows. */
export function grow(area) {
  area.style.height = 'auto';
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}
