// Formulas as models write them, in TeX, to MathML, which browsers draw themselves.
//
// What is not known stays readable: a command without a meaning here is shown as it was written.

import { mathml } from "./dom.js";
import { ACCENTS, BIG, DELIMITERS, FUNCTIONS, LETTERS, SPACES, STYLES, SYMBOLS } from "./symbols.js";

/** Nesting beyond which a formula is shown as its source. */
const DEEPEST = 40;
const TOKEN = /\\(?:operatorname\*|[a-zA-Z]+|[^])|[0-9]+(?:[.,][0-9]+)*|\p{L}|[^]/gu;
const FENCES = {
  matrix: ["", ""],
  smallmatrix: ["", ""],
  pmatrix: ["(", ")"],
  bmatrix: ["[", "]"],
  Bmatrix: ["{", "}"],
  vmatrix: ["|", "|"],
  Vmatrix: ["‖", "‖"],
  cases: ["{", ""],
};
/** Commands that say how, not what. */
const SILENT = new Set(
  ("displaystyle textstyle scriptstyle limits nolimits nonumber notag allowbreak mathstrut " +
    "hfill hline strut protect relax").split(" "),
);
const SIZES = /^(?:big|Big)g?[lrm]?$/;

class TooDeep extends Error {}

/** The element of a formula, or null for one that cannot be drawn. */
export function math(source, display) {
  try {
    const row = new Reader(source, display).all();
    return mathml("math", { display: display ? "block" : null }, ...row);
  } catch (error) {
    if (error instanceof TooDeep) return null;
    throw error;
  }
}

class Reader {
  #tokens;
  #at = 0;
  #depth = 0;
  #display;

  constructor(source, display) {
    this.#tokens = source.match(TOKEN) ?? [];
    this.#display = display;
  }

  all() {
    const rows = this.#lines(() => this.#at >= this.#tokens.length);
    return rows.length > 1 || rows[0].length > 1 ? [table(rows, "aligned")] : rows[0][0];
  }

  #peek() {
    return this.#tokens[this.#at];
  }

  #next() {
    const token = this.#tokens[this.#at];
    this.#at += 1;
    return token;
  }

  #spaces() {
    while (this.#at < this.#tokens.length && this.#peek().trim() === "") this.#at += 1;
  }

  /** Nodes up to `ends()`, or to what ends every row. */
  #row(ends) {
    this.#deeper();
    const nodes = [];
    for (this.#spaces(); this.#at < this.#tokens.length && !ends(); this.#spaces()) {
      const node = this.#scripted();
      if (node !== null) nodes.push(node);
    }
    this.#depth -= 1;
    return nodes;
  }

  #deeper() {
    this.#depth += 1;
    if (this.#depth > DEEPEST) throw new TooDeep();
  }

  /** Rows of cells up to `ends()`. */
  #lines(ends) {
    const rows = [[]];
    const over = () => ["&", "\\\\", "\\cr"].includes(this.#peek()) || ends();
    while (true) {
      rows.at(-1).push(this.#row(over));
      if (this.#at >= this.#tokens.length || ends()) break;
      if (this.#next() !== "&") {
        if (this.#peek() === "[") this.#bracketed();
        rows.push([]);
      }
    }
    const last = rows.at(-1);
    if (rows.length > 1 && last.length === 1 && last[0].length === 0) rows.pop();
    return rows;
  }

  /** An atom with what stands above and below it. */
  #scripted() {
    const token = this.#peek();
    let base = token === "^" || token === "_" ? mathml("mrow") : this.#atom();
    let under = null;
    let over = null;
    for (this.#spaces(); this.#at < this.#tokens.length; this.#spaces()) {
      const mark = this.#peek();
      if (mark === "\\limits" || mark === "\\nolimits") {
        this.#at += 1;
      } else if (mark === "_" && under === null) {
        this.#at += 1;
        under = this.#argument();
      } else if (mark === "^" && over === null) {
        this.#at += 1;
        over = this.#argument();
      } else if (mark === "'" && over === null) {
        over = mathml("mo", {}, this.#primes());
      } else {
        break;
      }
    }
    if (under === null && over === null) return base;
    base ??= mathml("mrow");
    const stacked = base.getAttribute("movablelimits") !== null && this.#display;
    const tags = stacked ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    if (over === null) return mathml(tags[0], {}, base, under);
    if (under === null) return mathml(tags[1], {}, base, over);
    return mathml(tags[2], {}, base, under, over);
  }

  #primes() {
    let text = "";
    while (this.#peek() === "'") {
      this.#at += 1;
      text += "′";
    }
    return text;
  }

  /** One thing, or all that braces hold. */
  #argument() {
    this.#spaces();
    if (this.#at >= this.#tokens.length) return mathml("mrow");
    this.#deeper();
    const node = this.#atom() ?? mathml("mrow");
    this.#depth -= 1;
    return node;
  }

  /** The text in braces as it was written. */
  #plain() {
    this.#spaces();
    if (this.#peek() !== "{") return this.#at < this.#tokens.length ? this.#next() : "";
    this.#at += 1;
    let depth = 1;
    let text = "";
    while (this.#at < this.#tokens.length) {
      const token = this.#next();
      if (token === "{") depth += 1;
      if (token === "}") depth -= 1;
      if (depth === 0) break;
      text += token;
    }
    return text;
  }

  /** What stands in square brackets, if they come. */
  #bracketed() {
    this.#spaces();
    if (this.#peek() !== "[") return null;
    this.#at += 1;
    const nodes = this.#row(() => this.#peek() === "]");
    this.#at += 1;
    return mathml("mrow", {}, ...nodes);
  }

  #atom() {
    const token = this.#next();
    if (token === "{") {
      const nodes = this.#row(() => this.#peek() === "}");
      this.#at += 1;
      return nodes.length === 1 ? nodes[0] : mathml("mrow", {}, ...nodes);
    }
    if (token === "}") return null;
    if (token === "~") return space("0.33em");
    if (token[0] === "\\") return this.#command(token.slice(1));
    if (/^[0-9]/.test(token)) return mathml("mn", {}, token);
    if (/^\p{L}/u.test(token)) return mathml("mi", {}, token);
    return operator({ "-": "−", "*": "∗", "'": "′" }[token] ?? token);
  }

  #command(name) {
    if (Object.hasOwn(LETTERS, name)) return mathml("mi", {}, LETTERS[name]);
    if (Object.hasOwn(SYMBOLS, name)) return operator(SYMBOLS[name]);
    if (Object.hasOwn(BIG, name)) {
      return mathml("mo", { movablelimits: name.includes("int") ? null : "false" }, BIG[name]);
    }
    if (Object.hasOwn(SPACES, name)) return space(SPACES[name]);
    if (Object.hasOwn(ACCENTS, name)) return this.#accent(name, ...ACCENTS[name]);
    if (Object.hasOwn(STYLES, name)) return this.#styled(STYLES[name]);
    if (FUNCTIONS.has(name)) return functionName(name);
    if (SILENT.has(name)) return null;
    if (SIZES.test(name)) return this.#delimiter();
    switch (name) {
      case "frac":
      case "dfrac":
      case "tfrac":
      case "cfrac":
        return mathml("mfrac", {}, this.#argument(), this.#argument());
      case "binom":
      case "dbinom":
      case "tbinom": {
        const both = mathml("mfrac", { linethickness: "0" }, this.#argument(), this.#argument());
        return mathml("mrow", {}, fence("("), both, fence(")"));
      }
      case "sqrt": {
        const degree = this.#bracketed();
        if (degree === null) return mathml("msqrt", {}, this.#argument());
        return mathml("mroot", {}, this.#argument(), degree);
      }
      case "left":
        return this.#fenced();
      case "right":
      case "middle":
        return this.#delimiter();
      case "begin":
        return this.#environment();
      case "end":
        this.#plain();
        return null;
      case "overset":
      case "stackrel": {
        const over = this.#argument();
        return mathml("mover", {}, this.#argument(), over);
      }
      case "underset": {
        const under = this.#argument();
        return mathml("munder", {}, this.#argument(), under);
      }
      case "not": {
        const node = this.#argument();
        node.append("\u0338");
        return node;
      }
      case "pmod":
        return mathml("mrow", {}, fence("("), functionName("mod"), this.#argument(), fence(")"));
      case "boxed":
        return mathml("mrow", { class: "boxed" }, this.#argument());
      case "substack": {
        this.#spaces();
        this.#at += 1;
        const rows = this.#lines(() => this.#peek() === "}");
        this.#at += 1;
        return table(rows, "");
      }
      case "tag":
        return mathml("mtext", {}, `(${this.#plain()})`);
      case "label":
        this.#plain();
        return null;
      case "operatorname":
      case "operatorname*":
        return functionName(this.#plain());
      default:
        return mathml("mtext", {}, name.length === 1 ? name : `\\${name}`);
    }
  }

  #accent(name, mark, below) {
    const wide = /^(?:over|under|wide)/.test(name);
    const sign = mathml("mo", { stretchy: String(wide) }, mark);
    return mathml(
      below ? "munder" : "mover",
      {
        [below ? "accentunder" : "accent"]: "true",
        // What a brace is for stands beyond it.
        movablelimits: name.endsWith("brace") ? "false" : null,
      },
      this.#argument(),
      sign,
    );
  }

  #styled(style) {
    if (style === "text") return mathml("mtext", {}, this.#plain().replace(/^ | $/g, "\u00a0"));
    if (style === "upright") return mathml("mi", { mathvariant: "normal" }, this.#plain());
    const node = this.#argument();
    const leaves = node.querySelectorAll("mi, mn");
    for (const leaf of node.matches("mi, mn") ? [node] : leaves) {
      leaf.textContent = [...leaf.textContent].map((char) => style(char)).join("");
    }
    return node;
  }

  #delimiter() {
    this.#spaces();
    if (this.#at >= this.#tokens.length) return null;
    const token = this.#next();
    if (token === ".") return null;
    return fence(DELIMITERS[token] ?? token.replace(/^\\/, ""));
  }

  /** From \left to its \right. */
  #fenced() {
    const open = this.#delimiter();
    const nodes = this.#row(() => this.#peek() === "\\right");
    this.#at += 1;
    const close = this.#at <= this.#tokens.length ? this.#delimiter() : null;
    return mathml("mrow", {}, open, ...nodes, close);
  }

  #environment() {
    const name = this.#plain().replace(/\*$/, "");
    if (["array", "alignedat", "alignat"].includes(name)) this.#plain();
    const rows = this.#lines(() => this.#peek() === "\\end");
    this.#at += 1;
    this.#plain();
    const [open, close] = FENCES[name] ?? ["", ""];
    const inner = table(rows, FENCES[name] || name === "array" ? name : "aligned");
    return mathml("mrow", {}, open && fence(open), inner, close && fence(close));
  }
}

function operator(text) {
  return mathml("mo", "()[]{}|‖⟨⟩⌈⌉⌊⌋".includes(text) ? { stretchy: "false" } : {}, text);
}

function fence(text) {
  return mathml("mo", { stretchy: "true", fence: "true" }, text);
}

function space(width) {
  return mathml("mspace", { width });
}

/** A name such as lim, below which its conditions stand. */
function functionName(name) {
  const below = /^(?:lim|max|min|sup|inf|arg|det|gcd|Pr)/.test(name);
  const text = name.replace(/^(lim|arg)(sup|inf|max|min)$/, "$1 $2");
  return mathml("mi", { movablelimits: below ? "false" : null, mathvariant: "normal" }, text);
}

function table(rows, name) {
  const made = rows.map((cells) =>
    mathml("mtr", {}, ...cells.map((cell) => mathml("mtd", {}, ...cell))),
  );
  return mathml("mtable", { class: name, displaystyle: name === "aligned" ? "true" : null }, ...made);
}
