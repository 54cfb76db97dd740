// Files that go along with a message, as text in it.

import { el, setText } from "./dom.js";
import { count } from "./format.js";

const MOST_BYTES = 1_000_000;

/** Files are chosen, dropped or pasted; `list` shows them, `note` says which could not be taken. */
export class Attachments {
  #files = [];
  #list;
  #note;

  constructor(input, list, note) {
    this.#list = list;
    this.#note = note;
    input.addEventListener("change", () => {
      this.add(input.files);
      input.value = "";
    });
    document.addEventListener("dragover", (event) => {
      if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      this.add(event.dataTransfer.files);
    });
    document.addEventListener("paste", (event) => {
      if (event.clipboardData?.files.length) this.add(event.clipboardData.files);
    });
  }

  get empty() {
    return this.#files.length === 0;
  }

  /** Take what is text among `files`. */
  async add(files) {
    const refused = [];
    for (const file of [...files]) {
      const text = file.size > MOST_BYTES ? null : await textOf(file);
      if (text === null) refused.push(file.name);
      else this.#files.push({ name: file.name, text });
    }
    this.#note.hidden = refused.length === 0;
    const limit = `${count(MOST_BYTES / 1000)} kB at most`;
    setText(this.#note, refused.length ? `Only text goes along, ${limit}: ${refused.join(", ")}` : "");
    this.#show();
  }

  /** A message's text with all files before it, which are forgotten. */
  take(text) {
    const parts = this.#files.map(({ name, text }) => fenced(name, text));
    this.#files = [];
    this.#note.hidden = true;
    this.#show();
    return [...parts, text].filter(Boolean).join("\n\n");
  }

  #show() {
    this.#list.hidden = this.empty;
    this.#list.replaceChildren(
      ...this.#files.map((file) => {
        const remove = el("button", { type: "button", class: "quiet" }, "Remove");
        remove.setAttribute("aria-label", `Remove ${file.name}`);
        remove.addEventListener("click", () => {
          this.#files = this.#files.filter((other) => other !== file);
          this.#show();
        });
        return el("li", {}, el("span", {}, file.name), remove);
      }),
    );
  }
}

/** The text of a file, or null for bytes that are none. */
async function textOf(file) {
  try {
    const decoder = new TextDecoder("utf-8", { fatal: true });
    const text = decoder.decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

/** A fence is longer than any within. */
function fenced(name, text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${name}:\n${fence}\n${text.trimEnd()}\n${fence}`;
}
