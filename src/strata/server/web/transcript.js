// The messages of a conversation as elements, and what can be done with each of them.

import { copyButton, el, setText } from "./dom.js";
import { count, known, number, seconds } from "./format.js";
import { render as renderMarkdown } from "./markdown.js";

const NEAR_END = 60;

const ENDS = {
  length: "Ended at the token limit.",
  stopped: "Stopped.",
  cut: "The page was left while this answer was given.",
};

/** Ends after which an answer can be gone on with. */
const CONTINUED = ["length", "stopped", "cut", "lost"];

/**
 * Shows a conversation in `list`, which scrolls in `scroller`. `does.edit(node, text)`,
 * `does.retry(node)`, `does.extend(node)` and `does.choose(node)` carry out what is clicked.
 */
export class Transcript {
  #list;
  #scroller;
  #does;
  #items = new Map();
  #chat = null;
  #frame = 0;
  #toEnd;
  #follows = true;

  constructor(list, scroller, toEnd, does) {
    this.#list = list;
    this.#scroller = scroller;
    this.#toEnd = toEnd;
    this.#does = does;
    const watch = () => {
      this.#follows = this.#distance() < NEAR_END;
      toEnd.hidden = this.#follows;
    };
    scroller.addEventListener("scroll", watch, { passive: true });
    const resized = new ResizeObserver(() => this.#follow());
    resized.observe(list);
    resized.observe(scroller);
    toEnd.addEventListener("click", () => this.scrollToEnd());
  }

  #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  #follow() {
    // What has become short enough to be seen as a whole gives no scroll event.
    if (this.#distance() < NEAR_END) this.#follows = true;
    this.#toEnd.hidden = this.#follows;
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  scrollToEnd() {
    this.#follows = true;
    this.#follow();
  }

  /** Show the whole path anew. */
  show(chat) {
    this.#chat = chat;
    this.#items.clear();
    this.#list.replaceChildren(...chat.path().map((node) => this.#item(node)));
    this.#follow();
  }

  /** The node has changed: at the next frame it will be shown so. */
  changed(node) {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.update(node);
    });
  }

  /** Show a node as it is now. */
  update(node) {
    const item = this.#items.get(node.id);
    if (!item) return;
    renderMarkdown(item.body, node.text);
    setText(item.thought, node.thought ?? "");
    setText(item.summary, node.end === null && node.text === "" ? "Thinking" : "Thoughts");
    item.thinking.hidden = !node.thought;
    item.article.setAttribute("aria-busy", String(node.end === null));
    item.actions.hidden = node.end === null;
    const last = this.#chat.path().at(-1) === node;
    item.extend.hidden = !last || node.text === "" || !CONTINUED.includes(node.end?.kind);
    setText(item.stats, statsLine(node));
    const note = noteOf(node);
    setText(item.note, note);
    item.note.hidden = note === "";
    item.note.classList.toggle("bad", ["lost", "refused"].includes(node.end?.kind));
    this.#follow();
  }

  /** Say how far the prompt has been read, while there is nothing else to show. */
  progress(node, done, total) {
    this.waiting(node, `Reading the prompt: ${count(done)} of ${count(total)} tokens`);
  }

  /** Say what an answer waits for, while there is nothing else to show. */
  waiting(node, words) {
    const item = this.#items.get(node.id);
    if (item && node.text === "" && !node.thought) setText(item.stats, words);
  }

  /** Begin to edit a message of the user's. */
  edit(node) {
    const item = this.#items.get(node.id);
    const before = document.activeElement;
    const area = el("textarea", { rows: "3", "aria-label": "Your message, edited" });
    area.value = node.text;
    const close = () => {
      form.replaceWith(item.body, item.actions);
      before?.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text === "") return;
      close();
      this.#does.edit(node, text);
    };
    const form = el(
      "form",
      { class: "edit" },
      area,
      el(
        "div",
        { class: "actions" },
        el("button", { type: "submit", class: "primary" }, "Send"),
        el("button", { type: "button", click: close }, "Cancel"),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    form.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && event.target === area) {
        event.preventDefault();
        send();
      }
    });
    item.actions.remove();
    item.body.replaceWith(form);
    area.style.height = `${Math.min(area.scrollHeight + 2, 400)}px`;
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #item(node) {
    const user = node.role === "user";
    const body = el("div", { class: "body" });
    if (user) body.textContent = node.text;
    const thought = el("p", {});
    const summary = el("summary", {});
    const thinking = el("details", { class: "thinking", hidden: true }, summary, thought);
    const note = el("p", { class: "note", hidden: true });
    const stats = el("p", { class: "stats" });
    const copying = copyButton(() => node.text, "Copy", { class: "quiet" });
    const other = user
      ? el("button", { type: "button", class: "quiet", click: () => this.edit(node) }, "Edit")
      : el(
          "button",
          { type: "button", class: "quiet", click: () => this.#does.retry(node) },
          "Retry",
        );
    const extend = el(
      "button",
      { type: "button", class: "quiet", hidden: true, click: () => this.#does.extend(node) },
      "Continue",
    );
    const buttons = [copying, other, ...(user ? [] : [extend]), this.#branches(node)];
    const actions = el("div", { class: "actions" }, ...buttons);
    const article = el(
      "article",
      { class: user ? "user" : "answer", "aria-label": user ? "You" : "Answer" },
      // Readers of headings go from answer to answer; those that a model writes are below them.
      ...(user ? [] : [el("h2", { class: "hidden" }, "Answer"), thinking]),
      body,
      ...(user ? [] : [note, stats]),
      actions,
    );
    const parts = { article, body, thinking, summary, thought, note, stats, actions, extend };
    this.#items.set(node.id, parts);
    if (!user) this.update(node);
    return el("li", {}, article);
  }

  #branches(node) {
    const all = this.#chat.siblings(node);
    if (all.length < 2) return null;
    const place = all.indexOf(node);
    const what = node.role === "user" ? "version" : "answer";
    const step = (by, sign, name) =>
      el(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": `${name} ${what}`,
          disabled: all[place + by] === undefined,
          click: () => this.#does.choose(all[place + by], by),
        },
        sign,
      );
    return el(
      "span",
      { class: "branches", role: "group", "aria-label": `${what} ${place + 1} of ${all.length}` },
      step(-1, "‹", "Previous"),
      el("span", { "aria-hidden": "true" }, `${place + 1}/${all.length}`),
      step(1, "›", "Next"),
    );
  }

  /** Put the focus on the arrow that was just used, in the branch that came with it. */
  focusBranch(node, by) {
    const buttons = this.#items.get(node.id)?.actions.querySelectorAll(".branches button") ?? [];
    const [back, forth] = buttons;
    const wanted = by < 0 ? back : forth;
    const other = by < 0 ? forth : back;
    (wanted?.disabled ? other : wanted)?.focus();
  }
}

function noteOf(node) {
  if (node.end === null) return "";
  const how = node.end.message ?? ENDS[node.end.kind] ?? (node.text === "" ? "An empty answer." : "");
  const notice = node.notice ? `${node.notice[0].toUpperCase()}${node.notice.slice(1)}.` : "";
  return [notice, how].filter(Boolean).join(" ");
}

/** Tokens, speed, time to the first token; what is not known is left out. */
function statsLine(node) {
  const { stats } = node;
  if (!stats) return node.end === null ? "Waiting for the first token" : "";
  const parts = node.model ? [node.model] : [];
  if (known(stats.rate)) parts.push(`${number(stats.rate)} tok/s`);
  if (known(stats.ttft)) parts.push(`first token after ${seconds(stats.ttft)}`);
  parts.push(`${stats.exact ? "" : "about "}${count(stats.tokens)} tokens`);
  if (known(stats.prompt)) {
    const cached = stats.cached ? `, ${count(stats.cached)} reused` : "";
    parts.push(`prompt ${count(stats.prompt)}${cached}`);
  }
  return parts.join(" · ");
}
