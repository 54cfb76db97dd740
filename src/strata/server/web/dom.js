// Building elements. Text goes in as text nodes only: nothing here can become markup.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

/**
 * An element. Functions among the properties are listeners, the rest attributes; false and null
 * leave an attribute out. Strings among the children become text.
 */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same in SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** The same in MathML. */
export function mathml(tag, properties = {}, ...children) {
  return fill(document.createElementNS(MATHML, tag), properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with an id; the page has them all. */
export function byId(id) {
  const node = document.getElementById(id);
  if (node === null) throw new Error(`the page lacks #${id}`);
  return node;
}

/** Set an element's text if it is another one, which spares a layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Put text on the clipboard, also where pages without TLS may not use the modern way. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused: the old way may still do.
    }
  }
  const focused = document.activeElement;
  const area = el("textarea", { class: "off-screen", readonly: true, "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** A button that copies what `text()` gives and says so for a moment. */
export function copyButton(text, label = "Copy", properties = {}) {
  const button = el("button", { type: "button", ...properties }, label);
  let timer = 0;
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.textContent = done ? "Copied" : "Not allowed";
    clearTimeout(timer);
    timer = setTimeout(() => {
      button.textContent = label;
    }, 1500);
  });
  return button;
}
