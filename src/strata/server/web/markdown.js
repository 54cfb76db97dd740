// Markdown as models write it: blocks. Parsing gives plain objects, rendering makes elements of
// them; a model's words never pass through a parser of HTML. See inline.js for what is in a line.
//
// Every expression here is linear in the length of the line it reads.

import { copyButton, el } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";
import { math } from "./math.js";

const DEEPEST = 8;
/** What may be wider than the page is scrolled with keys, too. */
const SCROLLS = { tabindex: 0 };
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const FORMULA = /^ {0,3}(\$\$|\\\[)/;
const FORMULA_ENDS = { $$: "$$", "\\[": "\\]" };
const MOST_FORMULA_LINES = 100;
const TASK = /^\[([ xX])\] /;
const TABLE_RULE = /^:?-+:?$/;

/** The blocks of a text; `lines` of each are its source. */
export function parse(text) {
  return blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const block = depth < DEEPEST ? special(lines, at, depth) : null;
    const taken = block ?? paragraph(lines, at, depth);
    const { end, ...rest } = taken;
    found.push({ ...rest, source: lines.slice(at, end).join("\n") });
    at = end;
  }
  return found;
}

function special(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = heading[2].trimEnd();
    return { kind: "heading", level: heading[1].length, text: closed(text), end: at + 1 };
  }
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) return quoted(lines, at, depth);
  if (ITEM.test(line)) return list(lines, at, depth);
  const formula = formulaAt(lines, at);
  if (formula) return formula;
  return isTable(lines, at) ? table(lines, at) : null;
}

/** A heading without the number signs that may close it. */
function closed(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}

function fenced(lines, at, [, mark, language]) {
  let end = at + 1;
  const closes = (line) => {
    const text = line.trim();
    return text.length >= mark.length && text === mark[0].repeat(text.length);
  };
  while (end < lines.length && !closes(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  return { kind: "code", language, text, end: Math.min(end + 1, lines.length) };
}

/** A formula that has its lines for itself, once its end is there. */
function formulaAt(lines, at) {
  const open = FORMULA.exec(lines[at])?.[1];
  if (open === undefined) return null;
  const parts = [];
  for (let end = at; end < Math.min(lines.length, at + MOST_FORMULA_LINES); end += 1) {
    const line = end === at ? lines[at].trimStart().slice(open.length) : lines[end];
    const close = line.indexOf(FORMULA_ENDS[open]);
    if (close >= 0) {
      if (line.slice(close + 2).trim() !== "") return null;
      parts.push(line.slice(0, close));
      const text = parts.join("\n").trim();
      return text ? { kind: "math", text, end: end + 1 } : null;
    }
    if (line.trim() === "" && end > at) return null;
    parts.push(line);
  }
  return null;
}

function quoted(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { kind: "quote", blocks: blocks(inner, depth + 1), end };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    const same = item && /\d/.test(item[2]) === ordered && item[1].length <= first[1].length + 1;
    if (!same || RULE.test(lines[end])) break;
    const indent = item[3] === "" ? item[0].length + 1 : item[0].length;
    const inner = [lines[end].slice(item[0].length)];
    end += 1;
    while (end < lines.length && belongs(lines, end, indent, item[1].length)) {
      inner.push(lines[end].slice(Math.min(indent, leading(lines[end]))));
      end += 1;
    }
    while (inner.length > 1 && inner.at(-1).trim() === "") inner.pop();
    items.push(blocks(inner, depth + 1));
  }
  const start = ordered ? Number.parseInt(first[2], 10) : null;
  return { kind: "list", ordered, start, items, end };
}

/** Whether a line goes on with a list item whose words begin at `indent`. */
function belongs(lines, at, indent, marker) {
  const line = lines[at];
  if (line.trim() === "") {
    let next = at + 1;
    // Two blank lines end a list, which keeps this look ahead short.
    if (next < lines.length && lines[next].trim() === "") return false;
    return next < lines.length && (leading(lines[next]) > marker || ITEM.test(lines[next]));
  }
  if (leading(line) > marker) return true;
  // A line that simply goes on with the item's paragraph.
  return lines[at - 1].trim() !== "" && !startsBlock(lines, at);
}

function leading(line) {
  return line.length - line.trimStart().length;
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length) return false;
  const under = cells(lines[at + 1]);
  return lines[at + 1].includes("-") && under.every((cell) => TABLE_RULE.test(cell));
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "end";
    return "start";
  });
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = lines.slice(at + 2, end).map(cells);
  return { kind: "table", align, head: cells(lines[at]), rows, end };
}

function cells(line) {
  let text = line.trim();
  if (text.startsWith("|")) text = text.slice(1);
  if (text.endsWith("|") && !text.endsWith("\\|")) text = text.slice(0, -1);
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function startsBlock(lines, at) {
  const line = lines[at];
  const marks = [FENCE, HEADING, RULE, QUOTE, ITEM];
  if (marks.some((mark) => mark.test(line)) || isTable(lines, at)) return true;
  return formulaAt(lines, at) !== null;
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  const goesOn = () =>
    lines[end].trim() !== "" && (depth >= DEEPEST || !startsBlock(lines, end));
  while (end < lines.length && goesOn()) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return { kind: "paragraph", text, end };
}

/** What is shown in each element, so that a growing text only touches its last block. */
const shown = new WeakMap();

/** Show `text` in an element, whose children belong to this function. */
export function render(container, text) {
  const before = shown.get(container) ?? [];
  const now = parse(text);
  let same = 0;
  while (same < Math.min(before.length, now.length) && before[same].source === now[same].source) {
    same += 1;
  }
  const growing = before[same];
  const kept = before.slice(0, same);
  if (growing?.kind === "code" && now[same]?.kind === "code") {
    // Its button may have the focus.
    const { text, language } = now[same];
    growing.node.querySelector("code").replaceChildren(...highlight(text, language));
    growing.node.querySelector("figcaption span").textContent = now[same].language;
    kept.push({ ...growing, source: now[same].source });
  }
  for (const gone of before.slice(kept.length)) gone.node.remove();
  for (const block of now.slice(kept.length)) {
    const node = element(block);
    container.append(node);
    kept.push({ kind: block.kind, source: block.source, node });
  }
  shown.set(container, kept);
}

function element(block) {
  switch (block.kind) {
    case "code":
      return codeBlock(block);
    case "heading":
      // The page has headings of its own above those of an answer.
      return el(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...block.blocks.map(element));
    case "list":
      return el(
        block.ordered ? "ol" : "ul",
        { start: block.ordered && block.start !== 1 ? block.start : null },
        ...block.items.map(listItem),
      );
    case "table":
      return tableElement(block);
    case "math":
      return formulaElement(block.text);
    default:
      return el("p", {}, ...inline(block.text));
  }
}

/** A tight item has its words directly in it. */
function listItem(inner) {
  const [first, ...rest] = inner;
  if (first?.kind !== "paragraph") return el("li", {}, ...inner.map(element));
  const task = TASK.exec(first.text);
  if (!task) return el("li", {}, ...inline(first.text), ...rest.map(element));
  const done = task[1] !== " ";
  const box = el("input", {
    type: "checkbox",
    disabled: true,
    checked: done,
    "aria-label": done ? "done" : "to do",
  });
  const words = inline(first.text.slice(task[0].length));
  return el("li", { class: "task" }, box, ...words, ...rest.map(element));
}

function formulaElement(text) {
  const drawn = math(text, true);
  return drawn === null ? el("pre", SCROLLS, text) : el("div", { class: "formula", ...SCROLLS }, drawn);
}

function codeBlock(block) {
  const code = el("code", {}, ...highlight(block.text, block.language));
  const button = copyButton(() => code.textContent, "Copy", { class: "quiet" });
  button.setAttribute("aria-label", "Copy code");
  const caption = el("figcaption", {}, el("span", {}, block.language), button);
  return el("figure", { class: "code" }, caption, el("pre", SCROLLS, code));
}

function tableElement(block) {
  const row = (values, tag) =>
    el(
      "tr",
      {},
      ...block.align.map((align, column) =>
        el(tag, { class: `align-${align}` }, ...inline(values[column] ?? "")),
      ),
    );
  return el(
    "div",
    { class: "table", ...SCROLLS },
    el(
      "table",
      {},
      el("thead", {}, row(block.head, "th")),
      el("tbody", {}, ...block.rows.map((values) => row(values, "td"))),
    ),
  );
}
