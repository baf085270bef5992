// Figures as people read them.

export const whole = (value) => Math.round(value).toLocaleString("en");

export const percent = (value) => `${(value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0)}%`;

/** 1.5 GB, 320 kB. */
export function bytes(value) {
  const at = value < 1000 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), 4);
  const shown = value / 1000 ** at;
  return `${shown >= 10 || at === 0 ? Math.round(shown) : shown.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][at]}`;
}
