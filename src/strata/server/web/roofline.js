// The roofline: operations a second over operations a byte, both logarithmic, with the ceilings
// that were measured here and the point at which the last sweep ran.
// Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.

import { svg } from "./dom.js";
import { known, number, percent, PREFIXES, scaled } from "./format.js";

const WIDTH = 340;
const HEIGHT = 224;
const LEFT = 46;
const RIGHT = 10;
const TOP = 20;
const BOTTOM = 34;

export class Roofline {
  #node;
  #text;
  #key = "";
  #point = null;
  #scale = null;

  constructor(node, text) {
    this.#node = node;
    this.#text = text;
    node.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  }

  /**
   * `point` is `{flops_per_byte, flops_per_s, bytes_per_s}` or null, `ceilings`
   * `{memory_bytes_per_s, disk_bytes_per_s, ops_per_s}`, each null where it was not measured.
   */
  show(point, ceilings) {
    this.#text.textContent = words(point, ceilings);
    const range = ranges(point, ceilings, this.#scale);
    const key = JSON.stringify([range, ceilings]);
    if (key !== this.#key) {
      this.#key = key;
      this.#scale = range;
      this.#draw(range, ceilings);
    }
    const visible = point !== null;
    this.#point.setAttribute("visibility", visible ? "visible" : "hidden");
    if (visible) {
      const x = place(point.flops_per_byte, range.x, LEFT, WIDTH - RIGHT);
      const y = place(point.flops_per_s, range.y, HEIGHT - BOTTOM, TOP);
      this.#point.setAttribute("transform", `translate(${x} ${y})`);
    }
  }

  #draw({ x, y }, ceilings) {
    const parts = [];
    for (const power of powers(x)) {
      const at = place(10 ** power, x, LEFT, WIDTH - RIGHT);
      parts.push(
        svg("line", { class: "grid", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }),
        svg(
          "text",
          { class: "tick", x: at, y: HEIGHT - BOTTOM + 13, "text-anchor": power === x[1] ? "end" : "middle" },
          tick(power),
        ),
      );
    }
    for (const power of powers(y)) {
      const at = place(10 ** power, y, HEIGHT - BOTTOM, TOP);
      parts.push(
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }),
        svg(
          "text",
          { class: "tick", x: LEFT - 6, y: at + 3.5, "text-anchor": "end" },
          tick(power),
        ),
      );
    }
    parts.push(
      svg(
        "text",
        { class: "axis", x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" },
        "operations per byte",
      ),
      svg("text", { class: "axis", x: 0, y: 9 }, "operations per second"),
    );
    const { memory_bytes_per_s: memory, disk_bytes_per_s: disk, ops_per_s: top } = ceilings;
    if (known(disk)) parts.push(...slope(disk, top, { x, y }, "disk", "disk"));
    if (known(memory)) parts.push(...slope(memory, top, { x, y }, "memory", "memory"));
    this.#point = svg(
      "g",
      { class: "point" },
      svg("circle", { class: "halo", r: 9 }),
      svg("circle", { r: 4.5 }),
    );
    this.#node.replaceChildren(...parts, this.#point);
  }
}

/** A bandwidth that rises until it meets the compute ceiling, and that ceiling beyond. */
function slope(rate, top, { x, y }, kind, name) {
  const px = (value) => place(value, x, LEFT, WIDTH - RIGHT);
  const py = (value) => place(value, y, HEIGHT - BOTTOM, TOP);
  const start = Math.max(10 ** x[0], 10 ** y[0] / rate);
  const ridge = Math.min(known(top) ? top / rate : Infinity, 10 ** x[1], 10 ** y[1] / rate);
  const points = [`${px(start)},${py(start * rate)}`, `${px(ridge)},${py(ridge * rate)}`];
  const roof = known(top) && top / rate < 10 ** x[1];
  if (roof) points.push(`${px(10 ** x[1])},${py(top)}`);
  const middle = Math.sqrt(start * ridge);
  const [mx, my] = [px(middle), py(middle * rate)];
  const angle =
    (Math.atan2(py(ridge * rate) - py(start * rate), px(ridge) - px(start)) * 180) / Math.PI;
  const parts = [
    svg("polyline", { class: `ceiling ${kind}`, points: points.join(" ") }),
    svg(
      "text",
      {
        class: `label ${kind}`,
        "text-anchor": "middle",
        transform: `translate(${mx} ${my}) rotate(${angle}) translate(0 ${kind === "disk" ? 13 : -5})`,
      },
      `${name} ${scaled(rate, "B/s")}`,
    ),
  ];
  if (roof && kind === "memory") {
    parts.push(
      svg(
        "text",
        { class: "label", x: px(10 ** x[1]) - 2, y: py(top) - 5, "text-anchor": "end" },
        scaled(top, "op/s"),
      ),
    );
  }
  return parts;
}

/** Whole powers of ten around all there is to show; they only grow, so that nothing jumps. */
function ranges(point, ceilings, before) {
  const { memory_bytes_per_s: memory, disk_bytes_per_s: disk, ops_per_s: top } = ceilings;
  const xs = [1, 100];
  const ys = known(top) ? [top] : [1e9, 1e12];
  const slowest = known(disk) ? disk : memory;
  if (known(top) && known(slowest)) xs.push((2 * top) / slowest);
  if (known(slowest)) ys.push(slowest);
  // The rising part of a ceiling has to be long enough for its name.
  if (known(top) && known(memory)) xs.push(top / memory / 30);
  if (point !== null) {
    xs.push(point.flops_per_byte);
    ys.push(point.flops_per_s);
  }
  const range = (values, old) => {
    const logs = values.filter((value) => value > 0).map(Math.log10);
    const low = Math.floor(Math.min(...logs));
    // A little room above, for a label.
    const high = Math.ceil(Math.max(...logs) + 0.1);
    return old ? [Math.min(low, old[0]), Math.max(high, old[1])] : [low, high];
  };
  return { x: range(xs, before?.x), y: range(ys, before?.y) };
}

function place(value, [low, high], from, to) {
  const share = (Math.log10(Math.max(value, 1e-30)) - low) / (high - low);
  return from + Math.min(Math.max(share, 0), 1) * (to - from);
}

function powers([low, high]) {
  return Array.from({ length: high - low + 1 }, (_, index) => low + index);
}

/** A power of ten as an axis says it: 0.1, 1, 10, 100, 1 k ... */
function tick(power) {
  if (power < 0) return String(10 ** power);
  const prefix = Math.min(Math.floor(power / 3), PREFIXES.length - 1);
  return `${10 ** (power - 3 * prefix)}\u00a0${PREFIXES[prefix]}`.trim();
}

function words(point, ceilings) {
  const { memory_bytes_per_s: memory, disk_bytes_per_s: disk, ops_per_s: top } = ceilings;
  const measured = known(memory) || known(top);
  const without = measured ? "" : " The ceilings of this machine are not known: strata probe measures them.";
  if (point === null) return `A point appears with the first sweep.${without}`;
  const parts = [
    `${number(point.flops_per_byte)} operations per byte`,
    share(scaled(point.flops_per_s, "op/s"), point.flops_per_s, top),
    share(scaled(point.bytes_per_s, "B/s"), point.bytes_per_s, memory),
  ];
  if (known(point.disk_bytes_per_s)) {
    const read = `${scaled(point.disk_bytes_per_s, "B/s")} from disk`;
    parts.push(share(read, point.disk_bytes_per_s, disk));
  }
  return `Last sweep: ${parts.join(", ")}.${without}`;
}

function share(text, value, ceiling) {
  return known(ceiling) ? `${text} (${percent(value / ceiling)} of the ceiling)` : text;
}
