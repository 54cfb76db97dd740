// Wires the page: the composer, the conversation, the dialogs, the live picture.

import { answer } from "./answering.js";
import { Api } from "./api.js";
import { Attachments } from "./attachments.js";
import { Chats } from "./chats.js";
import { Conversation, store } from "./conversation.js";
import { byId, el, setText } from "./dom.js";
import { count } from "./format.js";
import { Live } from "./live.js";
import { Machine } from "./machine.js";
import { render } from "./markdown.js";
import { Models } from "./models.js";
import { Settings } from "./settings.js";
import { SNIPPETS, snippet } from "./snippets.js";
import { Transcript } from "./transcript.js";

const SAVE_EVERY_MS = 1000;
const TALLEST_PROMPT = 240;

const api = new Api();
const settings = new Settings(byId("settings-form"));
const prompt = byId("prompt");
const send = byId("send");
const stop = byId("stop");
const attachments = new Attachments(byId("files"), byId("attached"), byId("attached-note"));

/** The answer that is being given: `{abort, over}`, or null. */
let running = null;
let chat = store.current();
/** The answer that was refused for want of a key, to be asked for again with one. */
let locked = null;
/** The page is going away, which breaks the connection: that is no end of the answer. */
let leaving = false;

const transcript = new Transcript(byId("messages"), byId("scroller"), byId("to-end"), {
  edit: (node, text) => say(node.parent, text),
  retry: (node) => reply(node.parent),
  extend: (node) => extend(node),
  choose: (node, by) => choose(node, by),
});

/** Tokens that one conversation may have, once known. */
let context = null;

function show() {
  byId("welcome").hidden = !chat.empty;
  transcript.show(chat);
  showContext();
}

/** How much of the context the conversation takes, as the last answer counted it. */
function showContext() {
  const stats = chat.path().at(-1)?.stats;
  const used = stats?.exact ? stats.prompt + stats.tokens : null;
  byId("context-use").hidden = used === null || context === null;
  if (used === null || context === null) return;
  const meter = byId("context-meter");
  meter.max = context;
  meter.high = 0.9 * context;
  meter.value = used;
  setText(byId("context-text"), `${count(used)} of ${count(context)} tokens of context`);
}

function save() {
  if (leaving) return;
  const kept = store.save(chat);
  const note = byId("storage-note");
  note.hidden = kept;
  setText(note, kept ? "" : "This browser has no room to keep the chat.");
}

/** Stop the answer that is being given and wait for its end. */
async function end() {
  if (running === null) return;
  running.abort.abort();
  await running.over;
}

/** A message under `parent`, and its answer. */
async function say(parent, text) {
  await end();
  const node = chat.add(parent, "user", text);
  await reply(node.id);
}

/** A new answer under the message `parent`. */
async function reply(parent) {
  await end();
  const messages = messagesTo(chat.nodes[parent]);
  const node = chat.add(parent, "assistant", "");
  if (models.several) node.model = models.chosen;
  await begin(node, messages);
}

/** Go on with an answer that ended before its time: the server continues its last words. */
async function extend(node) {
  await end();
  const messages = messagesTo(node);
  node.end = null;
  await begin(node, messages);
}

/** What is said to the model: the system prompt, and all up to a node. */
function messagesTo(node) {
  const path = chat.pathTo(node).map(({ role, text }) => ({ role, content: text }));
  const system = settings.system;
  return system === null ? path : [{ role: "system", content: system }, ...path];
}

async function begin(node, messages) {
  const abort = new AbortController();
  const over = give(node, messages, abort.signal);
  running = { abort, over };
  await over;
}

async function give(node, messages, signal) {
  let saved = performance.now();
  show();
  transcript.scrollToEnd();
  showRunning(true);
  announce("Answering");
  save();
  try {
    await answer(api, messages, settings.sampling, node, signal, {
      change: () => {
        transcript.changed(node);
        if (performance.now() - saved > SAVE_EVERY_MS) {
          saved = performance.now();
          save();
        }
      },
      progress: (done, total) => transcript.progress(node, done, total),
      loading: (words) => transcript.waiting(node, words[0].toUpperCase() + words.slice(1)),
    });
  } finally {
    running = null;
    node.end ??= { kind: "refused", message: "The answer could not be read." };
    chat.updated = Date.now();
    transcript.update(node);
    showContext();
    save();
    showRunning(false);
  }
  announce(ending(node));
  if (node.end.status === 401) {
    locked = node;
    askForKey();
  }
}

function ending(node) {
  if (node.end.message) return node.end.message;
  const tokens = node.stats ? `, ${count(node.stats.tokens)} tokens` : "";
  return `Answer ${node.end.kind === "stopped" ? "stopped" : "finished"}${tokens}`;
}

function announce(text) {
  setText(byId("announcer"), text);
}

function showRunning(on) {
  const focused = document.activeElement;
  send.hidden = on;
  stop.hidden = !on;
  // The focus must not vanish with its button.
  if (on && focused === send) stop.focus();
  if (!on && (focused === stop || focused === document.body)) prompt.focus({ preventScroll: true });
}

async function choose(node, by) {
  await end();
  chat.choose(node);
  save();
  show();
  transcript.focusBranch(node, by);
}

async function open(next) {
  await end();
  chat = next;
  store.setCurrent(chat);
  store.prune();
  show();
  transcript.scrollToEnd();
  prompt.focus();
}

// The composer.

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, TALLEST_PROMPT)}px`;
}

prompt.addEventListener("input", fit);
prompt.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    byId("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && prompt.value === "" && running === null) {
    const last = chat.path().findLast((node) => node.role === "user");
    if (last) {
      event.preventDefault();
      transcript.edit(last);
    }
  }
});

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = prompt.value.trim();
  if ((words === "" && attachments.empty) || running !== null) return;
  const text = attachments.take(words);
  prompt.value = "";
  fit();
  store.setCurrent(chat);
  say(chat.path().at(-1)?.id ?? 0, text);
});

byId("attach").addEventListener("click", () => byId("files").click());
stop.addEventListener("click", end);
document.addEventListener("keydown", (event) => {
  const inDialog = document.querySelector("dialog[open]") !== null;
  if (event.key === "Escape" && !event.isComposing && !inDialog) end();
});
window.addEventListener("pagehide", () => {
  save();
  leaving = true;
});
window.addEventListener("pageshow", () => {
  leaving = false;
});

// Dialogs.

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    const outside = event.target === dialog;
    if (outside || event.target.closest("[data-close]")) dialog.close();
  });
}

byId("new-chat").addEventListener("click", () => open(new Conversation()));
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("open-chats").addEventListener("click", () => chats.open());

// The same from a program.

const codeKind = byId("code-kind");
codeKind.append(...Object.keys(SNIPPETS).map((kind) => el("option", {}, kind)));

function showCode() {
  const asked = {
    origin: location.origin,
    model: api.model,
    system: settings.system,
    sampling: settings.sampling,
    prompt: chat.path().findLast((node) => node.role === "user")?.text ?? "Hello",
  };
  const kind = codeKind.value;
  // Its own fence would end within what somebody asked.
  const fence = "~".repeat(8);
  render(byId("code-text"), `${fence}${SNIPPETS[kind].language}\n${snippet(kind, asked)}\n${fence}`);
}

codeKind.addEventListener("change", showCode);
byId("open-code").addEventListener("click", () => {
  showCode();
  byId("code").showModal();
});

const chats = new Chats({
  current: () => chat.id,
  open: (id) => (id === chat.id ? undefined : open(store.load(id) ?? new Conversation())),
  close: (id) => (id === chat.id ? open(new Conversation()) : undefined),
  renamed(id, name) {
    const named = id === chat.id ? chat : store.load(id);
    if (named === null) return;
    named.name = name;
    store.save(named);
  },
});

function askForKey() {
  const dialog = byId("key");
  if (dialog.open) return;
  const text = api.hasKey
    ? "The key was not accepted. This server asks for the key it was started with."
    : "This server asks for the key it was started with.";
  setText(byId("key-text"), text);
  dialog.showModal();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  api.setKey(form.elements.key.value, form.elements.remember.checked);
  form.reset();
  byId("key").close();
  live.wake();
  const node = locked;
  locked = null;
  if (node !== null && chat.nodes[node.id] === node) reply(node.parent);
});

// The live picture.

const machine = new Machine();
const models = new Models(byId("model-choice"), byId("model-name"), (name) => {
  api.model = name;
  live.restart();
});
const connection = byId("connection");
const CONNECTIONS = {
  connected: "connected",
  unloaded: "loaded by the first message",
  lost: "connection lost, trying again",
  locked: "needs a key",
};

const live = new Live(api, {
  models(names) {
    models.show(names);
    api.model = models.chosen;
  },
  model(model) {
    settings.adopt(model.sampling);
    machine.model(model);
    context = model.context;
    showContext();
  },
  state: (state) => machine.state(state),
  connection(state) {
    connection.dataset.state = state;
    setText(connection, CONNECTIONS[state]);
    machine.stale = state !== "connected";
    if (state === "locked") askForKey();
  },
});

// The page without the picture of the machine.

const showsMachine = byId("show-machine");
const PLAIN = "strata.plain";

function fold() {
  document.body.classList.toggle("plain", !showsMachine.checked);
}

function foldAndKeep() {
  fold();
  try {
    localStorage.setItem(PLAIN, showsMachine.checked ? "" : "1");
  } catch {
    // Without storage it lasts as long as the page.
  }
}

try {
  showsMachine.checked = localStorage.getItem(PLAIN) !== "1";
} catch {
  // It is shown.
}
fold();
showsMachine.addEventListener("change", foldAndKeep);
byId("settings-form").addEventListener("reset", () => queueMicrotask(foldAndKeep));

byId("machine-toggle").addEventListener("click", (event) => {
  const open = byId("machine").classList.toggle("open");
  event.currentTarget.setAttribute("aria-expanded", String(open));
});

show();
fit();
live.wake();
prompt.focus();
