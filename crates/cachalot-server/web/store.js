// Conversations kept in the browser: IndexedDB, or memory where the browser allows none.
//
// Two stores: `conversations` holds one small record each (what the list shows), `messages` one record per message, so that a
// growing answer is written alone, and two tabs on one conversation add to it without overwriting each other.

const NAME = 'cachalot';
const VERSION = 1;

/** Opens what the browser has. `persistent` of the result says whether conversations outlive the page. */
export async function openStore() {
  try {
    const store = new BrowserStore(await openDatabase());
    await store.conversations();
    return store;
  } catch {
    return new MemoryStore();
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('conversations', { keyPath: 'id' });
      request.result.createObjectStore('messages', { keyPath: 'id' }).createIndex('conversation', 'conversation');
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('another tab holds an older version'));
  });
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const completion = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error ?? new Error('the browser gave up the write'));
  });

class BrowserStore {
  persistent = true;

  constructor(database) {
    this.database = database;
    // A newer page in another tab wants to change the database: let it.
    database.onversionchange = () => database.close();
  }

  /** All records, newest first. */
  async conversations() {
    const records = await result(this.database.transaction('conversations').objectStore('conversations').getAll());
    return records.sort((a, b) => b.updated - a.updated);
  }

  /** {record, messages}, or null. */
  async load(id) {
    const transaction = this.database.transaction(['conversations', 'messages']);
    const record = result(transaction.objectStore('conversations').get(id));
    const messages = result(transaction.objectStore('messages').index('conversation').getAll(id));
    return (await record) ? { record: await record, messages: await messages } : null;
  }

  async putConversation(record) {
    const transaction = this.database.transaction('conversations', 'readwrite');
    transaction.objectStore('conversations').put(record);
    await completion(transaction);
  }

  /** Writes a message, unless its conversation was deleted meanwhile. */
  async putMessage(message) {
    const transaction = this.database.transaction(['conversations', 'messages'], 'readwrite');
    const owner = transaction.objectStore('conversations').getKey(message.conversation);
    owner.onsuccess = () => {
      if (owner.result !== undefined) transaction.objectStore('messages').put(message);
    };
    await completion(transaction);
  }

  async remove(id) {
    const transaction = this.database.transaction(['conversations', 'messages'], 'readwrite');
    transaction.objectStore('conversations').delete(id);
    const keys = transaction.objectStore('messages').index('conversation').getAllKeys(id);
    keys.onsuccess = () => {
      for (const key of keys.result) transaction.objectStore('messages').delete(key);
    };
    await completion(transaction);
  }

  /** Ids of the conversations with `text` in a message, any case. */
  search(text) {
    const wanted = text.toLowerCase();
    const found = new Set();
    const request = this.database.transaction('messages').objectStore('messages').openCursor();
    return new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve(found);
        if (cursor.value.content.toLowerCase().includes(wanted)) found.add(cursor.value.conversation);
        cursor.continue();
      };
    });
  }
}

/** The same in memory; records are copied on the way in and out, as a database does. */
class MemoryStore {
  persistent = false;
  #records = new Map();
  #messages = new Map();

  async conversations() {
    return [...this.#records.values()].map((record) => structuredClone(record)).sort((a, b) => b.updated - a.updated);
  }

  async load(id) {
    const record = this.#records.get(id);
    const messages = [...this.#messages.values()].filter((message) => message.conversation === id);
    return record ? structuredClone({ record, messages }) : null;
  }

  async putConversation(record) {
    this.#records.set(record.id, structuredClone(record));
  }

  async putMessage(message) {
    if (this.#records.has(message.conversation)) this.#messages.set(message.id, structuredClone(message));
  }

  async remove(id) {
    this.#records.delete(id);
    for (const [key, message] of this.#messages) if (message.conversation === id) this.#messages.delete(key);
  }

  async search(text) {
    const wanted = text.toLowerCase();
    const hits = [...this.#messages.values()].filter((message) => message.content.toLowerCase().includes(wanted));
    return new Set(hits.map((message) => message.conversation));
  }
}
