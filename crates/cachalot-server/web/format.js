// Numbers as people read them. Null and what is no finite number become a dash.

const UNKNOWN = '–';
const known = (value) => typeof value === 'number' && Number.isFinite(value);

/** 1234567 -> 1,234,567 */
export const count = (value) => (known(value) ? Math.round(value).toLocaleString('en-US') : UNKNOWN);

/** Three significant digits: 0.523, 14.2, 182, 2,310 */
export function rate(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 100) return count(value);
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** A share of 0 to 1 in percent. */
export const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : UNKNOWN);

/** Bytes in decimal units, as disks are sold. */
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : value.toPrecision(3)} ${units[unit]}`;
}

/** Milliseconds: 850 ms, 4.2 s, 3 min 12 s */
export function duration(ms) {
  if (!known(ms)) return UNKNOWN;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
