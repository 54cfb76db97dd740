// What is in a line of Markdown: emphasis, code, links. One pass with bounded look ahead.

import { el } from "./dom.js";
import { math } from "./math.js";

const DEEPEST = 6;
const LONGEST_LABEL = 500;
const LONGEST_ADDRESS = 2000;
const LONGEST_FORMULA = 2000;
const ADDRESS = /https?:\/\/[^\s<>"'`*]+/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

/** Nodes for a text. */
export function inline(text) {
  return new Scanner(text, 0).nodes();
}

class Scanner {
  #text;
  #depth;
  #at = 0;
  #plain = "";
  #out = [];
  /** Delimiters that do not come again: looking once more would make the whole quadratic. */
  #gone = new Set();

  constructor(text, depth) {
    this.#text = text;
    this.#depth = depth;
  }

  nodes() {
    while (this.#at < this.#text.length) {
      if (!this.#special()) {
        this.#plain += this.#text[this.#at];
        this.#at += 1;
      }
    }
    this.#flush();
    return this.#out;
  }

  #flush() {
    if (this.#plain) this.#out.push(document.createTextNode(this.#plain));
    this.#plain = "";
  }

  #push(node, end) {
    this.#flush();
    this.#out.push(node);
    this.#at = end;
    return true;
  }

  #inner(from, to) {
    const text = this.#text.slice(from, to);
    return this.#depth < DEEPEST ? new Scanner(text, this.#depth + 1).nodes() : [text];
  }

  #special() {
    switch (this.#text[this.#at]) {
      case "\n":
        return this.#push(el("br"), this.#at + 1);
      case "\\":
        return this.#escaped();
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#emphasis();
      case "!":
        // Pictures would be fetched from elsewhere; their link is shown.
        return this.#text[this.#at + 1] === "[" && this.#link(this.#at + 1);
      case "[":
        return this.#link(this.#at);
      case "$":
        return this.#formula("$$", "$$", true) || this.#formula("$", "$", false);
      case "h":
        return this.#bareLink();
      default:
        return false;
    }
  }

  #escaped() {
    if (this.#formula("\\(", "\\)", false) || this.#formula("\\[", "\\]", true)) return true;
    const next = this.#text[this.#at + 1];
    if (next === undefined || !PUNCTUATION.test(next)) return false;
    this.#plain += next;
    this.#at += 2;
    return true;
  }

  /** A formula between two marks. A dollar may also be a price. */
  #formula(open, close, display) {
    if (!this.#text.startsWith(open, this.#at) || this.#gone.has(close)) return false;
    const from = this.#at + open.length;
    const price = open === "$";
    if (price && /[\s$]/.test(this.#text[from] ?? " ")) return false;
    let end = this.#text.indexOf(close, from);
    if (end < 0) this.#gone.add(close);
    while (price && this.#text[end - 1] === "\\") end = this.#text.indexOf(close, end + 1);
    if (end < 0 || end - from > LONGEST_FORMULA || (price && !this.#ends(end))) return false;
    const source = this.#text.slice(from, end);
    const node = source.trim() === "" ? null : math(source, display);
    return node !== null && this.#push(node, end + close.length);
  }

  /** Whether a dollar ends a formula: no space before it, and no number behind. */
  #ends(at) {
    return this.#text[at - 1].trim() !== "" && !/[0-9]/.test(this.#text[at + 1] ?? " ");
  }

  #code() {
    const run = this.#run(this.#at);
    const ticks = "`".repeat(run);
    const end = this.#gone.has(ticks) ? -1 : this.#ticksAfter(this.#at + run, run);
    if (end < 0) {
      this.#gone.add(ticks);
      this.#plain += ticks;
      this.#at += run;
      return true;
    }
    const text = this.#text.slice(this.#at + run, end).replaceAll("\n", " ");
    const padded = text.startsWith(" ") && text.endsWith(" ") && text.trim() !== "";
    return this.#push(el("code", {}, padded ? text.slice(1, -1) : text), end + run);
  }

  #ticksAfter(from, wanted) {
    let at = this.#text.indexOf("`", from);
    while (at >= 0) {
      const run = this.#run(at);
      if (run === wanted) return at;
      at = this.#text.indexOf("`", at + run);
    }
    return -1;
  }

  /** How often the character at `at` is repeated there. */
  #run(at) {
    let end = at;
    while (this.#text[end] === this.#text[at]) end += 1;
    return end - at;
  }

  #emphasis() {
    const mark = this.#text[this.#at];
    const run = this.#run(this.#at);
    const delimiter = run >= 2 ? mark.repeat(2) : mark;
    const from = this.#at + delimiter.length;
    const close = delimiter in TAGS && this.#opens(run) ? this.#closer(delimiter, from) : -1;
    if (close < 0) {
      this.#plain += mark.repeat(run);
      this.#at += run;
      return true;
    }
    const node = el(TAGS[delimiter], {}, ...this.#inner(from, close));
    return this.#push(node, close + delimiter.length);
  }

  #opens(run) {
    const before = this.#text[this.#at - 1];
    const after = this.#text[this.#at + run];
    if (after === undefined || after.trim() === "") return false;
    // Underscores within words are names, not emphasis.
    return this.#text[this.#at] !== "_" || before === undefined || !WORD.test(before);
  }

  /** Where `delimiter` closes what began before `from`, or -1. */
  #closer(delimiter, from) {
    if (this.#gone.has(delimiter)) return -1;
    const mark = delimiter[0];
    const size = delimiter.length;
    let at = from;
    while (at < this.#text.length) {
      const char = this.#text[at];
      if (char === "\\") {
        at += 2;
      } else if (char === "`") {
        const run = this.#run(at);
        const ticks = "`".repeat(run);
        const end = this.#gone.has(ticks) ? -1 : this.#ticksAfter(at + run, run);
        if (end < 0) this.#gone.add(ticks);
        at = end < 0 ? at + run : end + run;
      } else if (char === mark) {
        const run = this.#run(at);
        const fits = size === 2 ? run >= 2 : run !== 2;
        const after = this.#text[at + run];
        const ends = this.#text[at - 1].trim() !== "" && at > from;
        const whole = mark !== "_" || after === undefined || !WORD.test(after);
        // Of a longer run the last marks are ours: the others close what is within.
        if (fits && ends && whole) return at + run - size;
        at += run;
      } else {
        at += 1;
      }
    }
    this.#gone.add(delimiter);
    return -1;
  }

  #link(open) {
    const close = this.#bracketAfter(open);
    if (close < 0 || this.#text[close + 1] !== "(") return false;
    const rest = this.#text.slice(close + 2, close + 2 + LONGEST_ADDRESS);
    const end = endOfAddress(rest);
    if (end < 0) return false;
    const address = safeAddress(rest.slice(0, end).trim().split(/\s/, 1)[0]);
    const label = this.#inner(open + 1, close);
    const node = address ? anchor(address, label) : el("span", {}, ...label);
    return this.#push(node, close + 2 + end + 1);
  }

  #bracketAfter(open) {
    const limit = Math.min(this.#text.length, open + LONGEST_LABEL);
    let depth = 0;
    for (let at = open; at < limit; at += 1) {
      const char = this.#text[at];
      if (char === "\\") at += 1;
      else if (char === "[") depth += 1;
      else if (char === "]" && --depth === 0) return at;
    }
    return -1;
  }

  #bareLink() {
    ADDRESS.lastIndex = this.#at;
    const found = ADDRESS.exec(this.#text)?.[0];
    if (!found || (this.#at > 0 && WORD.test(this.#text[this.#at - 1]))) return false;
    let end = found.length;
    while (end > 0 && ".,;:!?)]".includes(found[end - 1])) end -= 1;
    const text = found.slice(0, end);
    const address = safeAddress(text);
    return address ? this.#push(anchor(address, [text]), this.#at + end) : false;
  }
}

/** The closing bracket of an address, which may hold balanced ones, or -1. */
function endOfAddress(text) {
  let depth = 0;
  for (let at = 0; at < text.length && text[at] !== "\n"; at += 1) {
    if (text[at] === "(") depth += 1;
    else if (text[at] === ")" && depth-- === 0) return at;
  }
  return -1;
}

/** An absolute address that is safe to open, or null. */
function safeAddress(text) {
  try {
    const address = new URL(text);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
}

function anchor(address, label) {
  // Where it leads is what may be hidden behind its words.
  return el(
    "a",
    { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" },
    ...label,
  );
}
