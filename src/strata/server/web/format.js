// Numbers as people read them: three significant digits, a unit, and a dash for what is not known.

export const UNKNOWN = "–";

/** Decimal prefixes, a thousand apart. */
export const PREFIXES = ["", "k", "M", "G", "T", "P", "E"];

/** Three significant digits of a finite number; the dash for null. */
export function number(value) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  const digits = size >= 99.95 || size === 0 ? 0 : size >= 9.995 ? 1 : 2;
  return value.toFixed(digits);
}

/** A whole number with thin spaces between thousands. */
export function count(value) {
  if (!known(value)) return UNKNOWN;
  return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** A value with a decimal prefix: `scaled(1.5e9, "B/s")` is "1.50 GB/s". */
export function scaled(value, unit) {
  if (!known(value)) return UNKNOWN;
  let size = value;
  let prefix = 0;
  // 999.5 would be printed as 1000: it belongs to the next prefix.
  while (Math.abs(size) >= 999.5 && prefix < PREFIXES.length - 1) {
    size /= 1000;
    prefix += 1;
  }
  const text = prefix === 0 && Number.isInteger(size) ? String(size) : number(size);
  return `${text}\u00a0${PREFIXES[prefix]}${unit}`;
}

/** Bytes with a decimal unit. */
export function bytes(value) {
  return scaled(value, "B");
}

/** A time in milliseconds, seconds or minutes. */
export function seconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 0.9995) return `${number(value * 1000)}\u00a0ms`;
  if (value < 90) return `${number(value)}\u00a0s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)}\u00a0min ${whole % 60}\u00a0s`;
}

/** A share as a percentage. */
export function percent(share) {
  if (!known(share)) return UNKNOWN;
  return `${share < 0.0995 ? (share * 100).toFixed(1) : Math.round(share * 100)}\u00a0%`;
}

/** Whether a value of a snapshot is a number at all. */
export function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}
