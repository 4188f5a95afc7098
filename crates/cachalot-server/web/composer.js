// The field one writes in, and the images that go with a message. Images are taken only while the model takes them; otherwise the
// reason is said.

import { byId, el, iconButton, relabel } from './dom.js';
import { grow } from './message.js';

const TYPES = ['image/png', 'image/jpeg', 'image/gif', 'image/webp'];
const IMAGE_BYTES_AT_MOST = 8_000_000;

export class Composer {
  #form = byId('composer');
  #input = byId('input');
  #send = byId('send');
  #attach = byId('attach');
  #picker = byId('picker');
  #pictures = byId('attached');
  #images = [];
  #busy = false;
  #takesImages = false;

  /** `actions`: send(text, images) returning whether it was taken, stop(), editLast(), say(text). */
  constructor(actions) {
    this.actions = actions;
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener('keydown', (event) => this.#key(event));
    this.#input.addEventListener('input', () => this.#changed());
    this.#input.addEventListener('paste', (event) => this.#offer(event.clipboardData, event));
    this.#attach.addEventListener('click', () => (this.#takesImages ? this.#picker.click() : this.#refuse()));
    this.#picker.addEventListener('change', () => {
      this.#add([...this.#picker.files]);
      this.#picker.value = '';
    });
    this.#acceptDrops();
    this.#changed();
  }

  focus() {
    this.#input.focus();
  }

  /** While an answer is made, the button stops it. */
  set busy(busy) {
    this.#busy = busy;
    relabel(this.#send, busy ? 'stop' : 'send', busy ? 'Stop (Esc)' : 'Send (Enter)');
    this.#send.classList.toggle('stop', busy);
    this.#changed();
  }

  /** null: not known yet. */
  set takesImages(takes) {
    this.#takesImages = takes === true;
    this.#attach.setAttribute('aria-disabled', !this.#takesImages);
    const label = this.#takesImages ? 'Add images' : takes === null ? 'Images: the server has not said yet whether the model takes them' : 'Images: this model takes none';
    this.#attach.setAttribute('aria-label', label);
    this.#attach.title = label;
  }

  #changed() {
    grow(this.#input);
    this.#send.disabled = !this.#busy && this.#input.value.trim() === '' && this.#images.length === 0;
  }

  #key(event) {
    if (event.isComposing) return;
    // A phone's keyboard has no Shift+Enter: there Enter makes lines and the button sends.
    if (event.key === 'Enter' && !event.shiftKey && !matchMedia('(pointer: coarse)').matches) {
      event.preventDefault();
      if (!this.#busy) this.#submit();
    } else if (event.key === 'ArrowUp' && this.#input.value === '' && !this.#busy) {
      if (this.actions.editLast()) event.preventDefault();
    }
  }

  #submit() {
    if (this.#busy) return this.actions.stop();
    const text = this.#input.value.trim();
    if (!text && this.#images.length === 0) return;
    if (!this.actions.send(text, this.#images)) return;
    this.#input.value = '';
    this.#images = [];
    this.#showImages();
  }

  #acceptDrops() {
    const holdsFiles = (event) => event.dataTransfer?.types.includes('Files');
    const zone = document.documentElement;
    zone.addEventListener('dragover', (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = this.#takesImages ? 'copy' : 'none';
      document.body.classList.add(this.#takesImages ? 'drop' : 'no-drop');
    });
    const leave = () => document.body.classList.remove('drop', 'no-drop');
    zone.addEventListener('dragleave', (event) => {
      if (event.relatedTarget === null) leave();
    });
    zone.addEventListener('drop', (event) => {
      leave();
      if (holdsFiles(event)) this.#offer(event.dataTransfer, event);
    });
  }

  /** Takes the files of a paste or drop, if there are any; text goes its usual way. */
  #offer(transfer, event) {
    const files = [...(transfer?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    if (this.#takesImages) this.#add(files);
    else this.#refuse();
  }

  #refuse() {
    this.actions.say(this.#attach.title.startsWith('Images: this') ? 'This model does not take images.' : this.#attach.title);
  }

  async #add(files) {
    for (const file of files) {
      if (!TYPES.includes(file.type)) this.actions.say(`${file.name} is no PNG, JPEG, GIF or WebP image.`);
      else if (file.size > IMAGE_BYTES_AT_MOST) this.actions.say(`${file.name} is larger than ${IMAGE_BYTES_AT_MOST / 1e6} MB.`);
      else {
        try {
          this.#images.push({ name: file.name, url: await dataUrl(file) });
        } catch {
          this.actions.say(`${file.name} cannot be read.`);
        }
      }
    }
    this.#showImages();
    this.focus();
  }

  #showImages() {
    const items = this.#images.map((image) => {
      const remove = iconButton('close', `Remove ${image.name}`, () => {
        this.#images = this.#images.filter((other) => other !== image);
        this.#showImages();
        this.focus();
      });
      return el('li', {}, el('img', { src: image.url, alt: image.name }), remove);
    });
    this.#pictures.replaceChildren(...items);
    this.#pictures.hidden = items.length === 0;
    this.#changed();
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
