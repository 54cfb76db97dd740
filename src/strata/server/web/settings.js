// Sampling controls and the system prompt: a form that keeps what it says.

const KEY = "strata.settings";
const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "max_tokens",
  "seed",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
];
const FIELDS = ["system", ...NUMBERS, "stop"];
const OFF = { top_p: "1", top_k: "0", min_p: "0" };

export class Settings {
  #form;

  constructor(form) {
    this.#form = form;
    for (const [name, text] of Object.entries(stored())) {
      if (FIELDS.includes(name) && typeof text === "string") form.elements[name].value = text;
    }
    form.addEventListener("input", () => this.#changed());
    form.addEventListener("reset", () => queueMicrotask(() => this.#changed()));
    // Enter in a field is no way to lose the page.
    form.addEventListener("submit", (event) => event.preventDefault());
    this.#changed();
  }

  /** What the model's authors state, for controls that nobody has moved. */
  adopt(defaults) {
    for (const [name, value] of Object.entries(defaults)) {
      const field = this.#form.elements[name];
      if (!FIELDS.includes(name) || !field) continue;
      const untouched = field.value === field.defaultValue;
      field.defaultValue = String(value);
      if (untouched) field.value = field.defaultValue;
    }
    this.#changed();
  }

  #changed() {
    const kept = {};
    for (const name of FIELDS) {
      const field = this.#form.elements[name];
      if (field.validity.valid && field.value !== field.defaultValue) kept[name] = field.value;
      const output = this.#form.querySelector(`output[for="${field.id}"]`);
      if (output) output.value = shown(name, field.value);
    }
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      // Without storage they last as long as the page.
    }
  }

  /** The system prompt, or null. */
  get system() {
    return this.#form.elements.system.value.trim() || null;
  }

  /** What of the request body these controls decide. A field that is not valid has no say. */
  get sampling() {
    const body = {};
    for (const name of NUMBERS) {
      const field = this.#form.elements[name];
      if (field.value !== "" && field.validity.valid) body[name] = Number(field.value);
    }
    const stop = this.#form.elements.stop.value.split("\n").filter(Boolean);
    if (stop.length > 0) body.stop = stop;
    return body;
  }
}

function shown(name, text) {
  if (text === OFF[name]) return "off";
  if (name === "temperature" && text === "0") return "0, greedy";
  return text;
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}
