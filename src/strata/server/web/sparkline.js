// Speed over the last minute, with the predicted speed as a line to compare with.

import { svg } from "./dom.js";

const SAMPLES = 240;
const WIDTH = 340;
const HEIGHT = 48;
const ROOM = 1.15;

export class Sparkline {
  #values = [];
  #area = svg("path", { class: "area" });
  #line = svg("path", { class: "line" });
  #expected = svg("line", { class: "expected", x1: 0, x2: WIDTH });

  constructor(node) {
    node.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    node.setAttribute("preserveAspectRatio", "none");
    node.append(this.#area, this.#line, this.#expected);
  }

  /** Add a sample; `expected` is null where nothing was predicted. */
  add(value, expected) {
    this.#values.push(value);
    if (this.#values.length > SAMPLES) this.#values.shift();
    const top = Math.max(...this.#values, expected ?? 0, 1) * ROOM;
    const y = (at) => (HEIGHT - 1 - (at / top) * (HEIGHT - 2)).toFixed(1);
    const first = SAMPLES - this.#values.length;
    const x = (index) => (((first + index) * WIDTH) / (SAMPLES - 1)).toFixed(1);
    const points = this.#values.map((each, index) => `${x(index)} ${y(each)}`).join("L");
    this.#line.setAttribute("d", `M${points}`);
    this.#area.setAttribute("d", `M${x(0)} ${HEIGHT}L${points}L${WIDTH} ${HEIGHT}Z`);
    this.#expected.setAttribute("visibility", expected === null ? "hidden" : "visible");
    this.#expected.setAttribute("y1", y(expected ?? 0));
    this.#expected.setAttribute("y2", y(expected ?? 0));
  }
}
