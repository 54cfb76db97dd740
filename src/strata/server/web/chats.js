// The list of chats: search, rename, export, and deleting with a way back.

import { store } from "./conversation.js";
import { byId, el, setText } from "./dom.js";

const SPEAKERS = { user: "You", assistant: "Answer" };

/** The dialog `#chats`. `does.open(id)` shows a chat, `does.close(id)` leaves one that goes away,
 * `does.renamed(id, name)` and `does.current()` are of the one that is shown. */
export class Chats {
  #does;
  #search = byId("chat-search");
  #list = byId("chat-list");
  #undo = byId("chat-undo");
  /** What was deleted last, until the dialog is closed. */
  #deleted = null;

  constructor(does) {
    this.#does = does;
    this.#search.addEventListener("input", () => this.#show());
    this.#search.addEventListener("keydown", (event) => {
      // Escape empties the search before it closes the dialog.
      if (event.key !== "Escape" || this.#search.value === "") return;
      event.preventDefault();
      this.#search.value = "";
      this.#show();
    });
    byId("chat-undo-button").addEventListener("click", () => this.#restore());
    byId("chats").addEventListener("close", () => this.#forget());
  }

  open() {
    this.#search.value = "";
    this.#forget();
    this.#show();
    byId("chats").showModal();
  }

  #forget() {
    this.#deleted = null;
    this.#undo.hidden = true;
  }

  #show() {
    const found = store.list(this.#search.value);
    this.#list.replaceChildren(...found.map((chat) => this.#item(chat)));
    if (found.length > 0) return;
    const none = this.#search.value.trim() === "" ? "None yet." : "No chat has these words.";
    this.#list.append(el("li", { class: "fine" }, none));
  }

  #item({ id, title, updated }) {
    const date = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
    const current = this.#does.current() === id;
    const row = el(
      "button",
      {
        type: "button",
        class: "row",
        "aria-current": current ? "true" : null,
        click: () => {
          byId("chats").close();
          this.#does.open(id);
        },
      },
      title,
      el("span", { class: "fine" }, date.format(updated)),
    );
    const act = (name, work) =>
      el(
        "button",
        { type: "button", class: "quiet", "aria-label": `${name} ${title}`, click: work },
        name,
      );
    const item = el(
      "li",
      {},
      row,
      act("Rename", () => this.#rename(item, id, title)),
      act("Export", () => save(store.load(id))),
      act("Delete", () => this.#delete(id, title)),
    );
    return item;
  }

  #rename(item, id, title) {
    const field = el("input", { type: "text", "aria-label": "Name of the chat", maxlength: 200 });
    field.value = title;
    let over = false;
    const end = (name) => {
      if (over) return;
      over = true;
      if (name !== null) this.#does.renamed(id, name);
      // The others stay as they are: somebody may be clicking on one.
      const chat = store.list().find((each) => each.id === id);
      const renamed = chat && this.#item(chat);
      item.replaceWith(renamed ?? "");
      return renamed;
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter" ? field.value.trim() : null)?.querySelector("button").focus();
    });
    field.addEventListener("blur", () => end(field.value.trim()));
    item.replaceChildren(field);
    field.focus();
    field.select();
  }

  async #delete(id, title) {
    await this.#does.close(id);
    // With the end of an answer that was under way.
    const chat = store.load(id);
    store.remove(id);
    this.#deleted = chat;
    setText(byId("chat-undo-text"), `“${title}” is deleted.`);
    this.#undo.hidden = chat === null;
    this.#show();
    byId("chat-undo-button").focus();
  }

  #restore() {
    const chat = this.#deleted;
    this.#forget();
    if (chat !== null) store.save(chat);
    this.#show();
    this.#list.querySelector("button")?.focus();
  }
}

/** Give a chat to the browser as a file: what is shown, as Markdown. */
function save(chat) {
  if (chat === null) return;
  const parts = chat.path().map(({ role, text }) => `## ${SPEAKERS[role]}\n\n${text.trim()}\n`);
  const text = `# ${chat.title}\n\n${parts.join("\n")}`;
  const address = URL.createObjectURL(new Blob([text], { type: "text/markdown" }));
  const name = chat.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat";
  const link = el("a", { href: address, download: `${name}.md`, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
