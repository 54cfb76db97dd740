// Which of the server's models answers.

import { el, setText } from "./dom.js";

const KEY = "strata.model";

/** A choice where the server has several models, their name where it has one. */
export class Models {
  #select;
  #name;
  #changed;

  /** `changed(name)` follows a choice of somebody's. */
  constructor(select, name, changed) {
    this.#select = select;
    this.#name = name;
    this.#changed = changed;
    select.addEventListener("change", () => {
      keep(select.value);
      this.#entitle();
      this.#changed(select.value);
    });
  }

  /** The server has these: the one that was chosen last, or else the first, is taken. */
  show(names) {
    const wanted = names.includes(this.#select.value) ? this.#select.value : kept();
    this.#select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    this.#select.value = names.includes(wanted) ? wanted : (names[0] ?? "");
    this.#select.hidden = names.length < 2;
    this.#name.hidden = !this.#select.hidden;
    setText(this.#name, this.chosen ?? "");
    this.#entitle();
  }

  #entitle() {
    document.title = this.chosen === null ? "Strata" : `${this.chosen} · Strata`;
  }

  get chosen() {
    return this.#select.value || null;
  }

  get several() {
    return !this.#select.hidden;
  }
}

function keep(name) {
  try {
    localStorage.setItem(KEY, name);
  } catch {
    // Without storage the choice lasts as long as the page.
  }
}

function kept() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
