// The live picture: speed, tiers, the sweep over the Segments, the roofline.
// Fields that are null or missing are not known (yet) and are shown as a dash or left out.

import { byId, el, setText } from "./dom.js";
import { bytes, count, known, number, percent, scaled, seconds, UNKNOWN } from "./format.js";
import { Roofline } from "./roofline.js";
import { Sparkline } from "./sparkline.js";

const TIERS = { device: "GPU memory", host: "Memory", disk: "Disk", peer: "Other machines" };

/** Who owns bytes in a tier: field, name, class of the colour. */
const OWNERS = [
  ["weights_bytes", "Weights, resident", "resident"],
  ["ring_bytes", "Weights, streaming through", "streamed"],
  ["kv_used_bytes", "KV cache, used", "kv-used"],
  ["kv_free_bytes", "KV cache, free", "kv-free"],
  ["activations_bytes", "Activations", "activations"],
  ["interpreter_bytes", "Interpreter, tokenizer, server", "interpreter"],
];

/** A sweep that takes longer can be followed from Segment to Segment. */
const SLOW_SWEEP_S = 1;

export class Machine {
  #model = null;
  #tiers = new Map();
  #cells = [];
  #lit = null;
  /** The last prediction that could be compared. */
  #expected = null;
  #roofline = new Roofline(byId("roofline"), byId("roofline-text"));
  #sparkline = new Sparkline(byId("sparkline"));

  /** What does not change while the server runs. */
  model(model) {
    this.#model = model;
    this.#tiers.clear();
    byId("tiers").replaceChildren();
    this.#lit = null;
    this.#expected = null;
    this.#cells = model.segments.map((segment) => {
      const kind = segment.streamed ? "streamed" : "resident";
      const size = segment.bytes ? bytes(segment.bytes) : "the weights of another";
      const cell = el("span", {
        class: `cell ${kind}`,
        title: `${segment.name}: ${size}${streamedPart(segment)}`,
      });
      // Wide is heavy; a Segment without weights is still one.
      cell.style.flexGrow = String(Math.max(segment.bytes, 1));
      return cell;
    });
    byId("strip").replaceChildren(...this.#cells);
    setText(byId("segments-text"), segmentsLine(model.segments));
    byId("strip-key").hidden = !model.segments.some((segment) => segment.streamed);
    const where = [model.backend, model.isa].filter(Boolean).join(", ");
    const threads = known(model.threads) ? `, ${count(model.threads)} threads` : "";
    const context = `context ${count(model.context)}`;
    setText(byId("engine-text"), `${where}${threads} · ${context} · Strata ${model.version}`);
  }

  /** What changes from moment to moment. */
  state(state) {
    if (this.#model === null) return;
    this.#speed(state);
    for (const tier of state.tiers) this.#tier(tier);
    this.#sweep(state.sweep, state.requests.running > 0);
    this.#roofline.show(state.roofline, ceilings(this.#model.machine));
    const rate = state.actual.output_tok_s;
    const peak = state.tiers.find((tier) => tier.name === "host")?.peak_bytes;
    setText(
      byId("machine-summary"),
      [known(rate) ? `${number(rate)} tok/s` : "idle", bytes(peak)].join(" · "),
    );
  }

  /** Whether what is shown is of now. */
  set stale(stale) {
    byId("machine").classList.toggle("stale", stale);
  }

  #speed({ actual, predicted, sweep, requests, totals }) {
    const rate = actual.output_tok_s;
    setText(byId("rate"), known(rate) ? number(rate) : requests.running ? UNKNOWN : "idle");
    byId("rate-unit").hidden = !known(rate);
    this.#compare(actual, predicted);
    this.#sparkline.add(rate ?? 0, this.#expected);
    setText(byId("prompt-rate"), scaled(actual.prompt_tok_s, "tok/s"));
    setText(byId("per-sweep"), number(sweep.tokens_per_sweep));
    setText(byId("sweep-time"), seconds(sweep.seconds));
    const waiting = requests.waiting ? `, ${count(requests.waiting)} waiting` : "";
    setText(byId("requests"), `${count(requests.running)} running${waiting}`);
    setText(byId("totals"), `${count(totals.output_tokens)} out, ${count(totals.prompt_tokens)} in`);
  }

  /** What is predicted is for answers alone, so it waits until no prompt is in the actual speed. */
  #compare(actual, predicted) {
    const rate = actual.output_tok_s;
    if (known(predicted?.output_tok_s) && known(rate) && actual.prompt_tok_s < 1) {
      this.#expected = predicted.output_tok_s;
      const share = percent(rate / this.#expected);
      setText(
        byId("predicted"),
        `predicted ${number(this.#expected)} tok/s · reached ${number(rate)} (${share})`,
      );
    } else if (this.#expected === null) {
      const alone = this.#model.alone_tok_s;
      setText(
        byId("predicted"),
        known(alone)
          ? `predicted ${number(alone)} tok/s for one answer`
          : "no prediction: run strata probe to measure",
      );
    }
  }

  #tier(tier) {
    if (!known(tier.weights_bytes) && !known(tier.streamed_bytes)) return;
    let view = this.#tiers.get(tier.name);
    if (!view) {
      view = new Tier(TIERS[tier.name] ?? tier.name);
      this.#tiers.set(tier.name, view);
      byId("tiers").append(view.node);
    }
    view.show(tier);
  }

  #sweep(sweep, running) {
    const cell = this.#cells[sweep.segment] ?? null;
    const followed = cell !== null && known(sweep.seconds) && sweep.seconds > SLOW_SWEEP_S;
    if (cell !== this.#lit) {
      this.#lit?.classList.remove("now");
      cell?.classList.add("now");
      this.#lit = cell;
    }
    this.#cells.forEach((each, index) => {
      each.classList.toggle("passed", followed && index < sweep.segment);
    });
    const name = this.#model.segments[sweep.segment]?.name;
    const sweeps = `${count(sweep.count)} ${sweep.count === 1 ? "sweep" : "sweeps"}`;
    const place = name ? `now at ${name}` : running ? "now between two" : "at rest";
    setText(byId("sweep-text"), `${sweeps}, ${place}`);
  }
}

/** One tier: a bar of who owns what against the budget, and the same as a list. */
class Tier {
  #bar = el("div", { class: "bar", role: "img" });
  #parts = new Map();
  #legend = el("dl", { class: "legend" });
  #line = el("p", { class: "fine" });
  #peak = el("span", { class: "peak" });
  #values = new Map();

  constructor(name) {
    this.name = name;
    this.node = el("div", { class: "tier" }, el("h3", {}, name), this.#bar, this.#legend, this.#line);
  }

  show(tier) {
    if (known(tier.weights_bytes)) this.#memory(tier);
    else this.#bar.hidden = true;
    setText(this.#line, tierLine(tier));
  }

  #memory(tier) {
    const owned = OWNERS.filter(([field]) => known(tier[field]));
    const sum = owned.reduce((total, [field]) => total + tier[field], 0);
    const peak = tier.peak_bytes ?? 0;
    const scale = Math.max(tier.budget_bytes ?? 0, sum, peak, 1);
    for (const [field, label, kind] of owned) this.#set(label, kind, tier[field], scale);
    // What the process has held beyond what has an owner, be it while loading.
    if (peak > sum) this.#set("Without an owner, at the peak", "rest", peak - sum, scale);
    const free = (tier.budget_bytes ?? 0) - Math.max(sum, peak);
    if (free > 0) this.#set("Free", "free", free, scale);
    if (known(tier.peak_bytes)) {
      this.#peak.style.insetInlineStart = `${(100 * peak) / scale}%`;
      this.#bar.append(this.#peak);
    }
    this.#bar.setAttribute("aria-label", `${this.name}: ${tierLine(tier)}`);
  }

  #set(label, kind, size, scale) {
    let part = this.#parts.get(kind);
    if (!part) {
      part = el("span", { class: `part ${kind}` });
      this.#parts.set(kind, part);
      this.#bar.append(part);
      const value = el("dd");
      this.#values.set(kind, value);
      this.#legend.append(
        el("div", {}, el("dt", {}, el("span", { class: `swatch ${kind}` }), label), value),
      );
    }
    part.style.width = `${(100 * size) / scale}%`;
    setText(this.#values.get(kind), bytes(size));
  }
}

function tierLine(tier) {
  const parts = [];
  if (known(tier.peak_bytes)) {
    const budget = known(tier.budget_bytes)
      ? ` of ${bytes(tier.budget_bytes)} allowed (${percent(tier.peak_bytes / tier.budget_bytes)})`
      : ", no budget set";
    parts.push(`Peak of the process ${bytes(tier.peak_bytes)}${budget}`);
  }
  if (known(tier.streamed_bytes)) parts.push(`${bytes(tier.streamed_bytes)} read in each sweep`);
  if (known(tier.read_bytes_per_s)) parts.push(`reading ${scaled(tier.read_bytes_per_s, "B/s")}`);
  return parts.join(" · ");
}

function streamedPart(segment) {
  if (!segment.streamed) return "";
  if (segment.streamed_bytes === segment.bytes) return ", streamed";
  return `, ${bytes(segment.streamed_bytes)} of it streamed`;
}

function segmentsLine(segments) {
  const sum = (field) => segments.reduce((total, segment) => total + segment[field], 0);
  const all = sum("bytes");
  const streamed = segments.filter((segment) => segment.streamed);
  if (streamed.length === 0) return `${count(segments.length)} Segments, ${bytes(all)}`;
  const read = sum("streamed_bytes");
  return (
    `${count(segments.length - streamed.length)} resident, ${count(streamed.length)} streamed: ` +
    `${bytes(all - read)} stay, ${bytes(read)} stream`
  );
}

function ceilings(machine) {
  return {
    memory_bytes_per_s: machine?.memory_bytes_per_s ?? null,
    disk_bytes_per_s: machine?.disk_bytes_per_s ?? null,
    ops_per_s: machine?.ops_per_s ?? null,
  };
}
