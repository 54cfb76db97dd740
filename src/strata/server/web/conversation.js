// Conversations as trees: editing a message or retrying an answer begins a branch beside it.

const PREFIX = "strata.chat.";
const CURRENT = "strata.current";
const MOST = 100;
const TITLE_LENGTH = 60;

/**
 * One conversation. A node is `{id, parent, role, text}`, with `end`, `stats`, the server's `notice`
 * and, of models that think, `thought` for answers: `end` is null while an answer is being given.
 * What is shown is the path of chosen children.
 */
export class Conversation {
  constructor(data = null) {
    this.id = data?.id ?? newId();
    this.updated = data?.updated ?? Date.now();
    /** As somebody called it; else it is called after its first message. */
    this.name = data?.name ?? "";
    this.nodes = data?.nodes ?? {};
    this.chosen = data?.chosen ?? {};
    this.next = data?.next ?? 1;
    for (const node of Object.values(this.nodes)) {
      // The page went away while this answer was given.
      if (node.role === "assistant" && node.end === null) node.end = { kind: "cut" };
    }
  }

  get empty() {
    return this.next === 1;
  }

  get title() {
    if (this.name) return this.name;
    const first = this.path().find((node) => node.role === "user");
    const text = (first?.text ?? "").trim().replace(/\s+/g, " ");
    return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH)}…` : text || "Empty chat";
  }

  /** The nodes that are shown, from the first to the last. */
  path() {
    const path = [];
    let node = this.nodes[this.chosen[0]];
    while (node !== undefined) {
      path.push(node);
      node = this.nodes[this.chosen[node.id]];
    }
    return path;
  }

  /** The nodes from the first to `node`, itself included. */
  pathTo(node) {
    const path = [];
    for (let at = node; at !== undefined; at = this.nodes[at.parent]) path.unshift(at);
    return path;
  }

  /** A new node under `parent` (0 for none), chosen from now on. */
  add(parent, role, text) {
    const node = { id: this.next, parent, role, text };
    if (role === "assistant") node.end = null;
    this.next += 1;
    this.nodes[node.id] = node;
    this.chosen[parent] = node.id;
    this.updated = Date.now();
    return node;
  }

  /** All nodes in a node's place, in the order in which they were made. */
  siblings(node) {
    return Object.values(this.nodes).filter((other) => other.parent === node.parent);
  }

  choose(node) {
    this.chosen[node.parent] = node.id;
  }

  /** Whether some message, shown or not, or the title has all these words. */
  has(words) {
    const texts = Object.values(this.nodes).map((node) => node.text);
    const all = [this.title, ...texts].join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  }

  toJSON() {
    const { id, updated, name, nodes, chosen, next } = this;
    return { id, updated, ...(name && { name }), nodes, chosen, next };
  }
}

/** Conversations in the browser's storage, which may be full or forbidden. */
export const store = {
  /** Those that have the words of `text`, the latest first, as `{id, title, updated}`. */
  list(text = "") {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return keys()
      .map((key) => load(key.slice(PREFIX.length)))
      .filter((chat) => chat?.has(words))
      .sort((a, b) => b.updated - a.updated)
      .map(({ id, title, updated }) => ({ id, title, updated }));
  },

  load,

  /** The one that was open last, or a new one. */
  current() {
    return load(read(CURRENT)) ?? new Conversation();
  },

  setCurrent(chat) {
    write(CURRENT, chat.id);
  },

  /** Keep a conversation; older ones go when there is no room. False if it could not be kept. */
  save(chat) {
    if (chat.empty) return true;
    const text = JSON.stringify(chat);
    if (write(PREFIX + chat.id, text)) return true;
    const older = this.list().filter(({ id }) => id !== chat.id);
    while (older.length > 0) {
      this.remove(older.pop().id);
      if (write(PREFIX + chat.id, text)) return true;
    }
    return false;
  },

  /** Forget the oldest beyond the number that is kept. */
  prune() {
    for (const { id } of this.list().slice(MOST)) this.remove(id);
  },

  remove(id) {
    try {
      localStorage.removeItem(PREFIX + id);
    } catch {
      // Nothing was kept either.
    }
  },
};

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return [];
  }
}

function load(id) {
  const text = id ? read(PREFIX + id) : null;
  if (text === null) return null;
  try {
    return new Conversation(JSON.parse(text));
  } catch {
    return null;
  }
}

function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function write(key, text) {
  try {
    localStorage.setItem(key, text);
    return true;
  } catch {
    return false;
  }
}

function newId() {
  // crypto.randomUUID is missing on pages without TLS.
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${Date.now().toString(36)}-${random[0].toString(36)}${random[1].toString(36)}`;
}
