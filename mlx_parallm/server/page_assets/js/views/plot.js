// A small plot of the last two minutes, drawn again with each point.

import { element, svg } from "../dom.js";
import { LENGTH } from "../data/metrics.js";

const WIDTH = 240;
const HEIGHT = 64;

export class Plot {
  /** title, show: a figure as text. top: the least upper end of the scale. */
  constructor({ title, note, show, top = 0 }) {
    Object.assign(this, { title, show, top });
    this.value = element("output", { class: "value" });
    this.most = element("span", { class: "most" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.picture.append(this.area, this.line);
    this.element = element(
      "article",
      { class: "plot" },
      element("h3", { text: title }),
      this.value,
      element("div", { class: "picture" }, this.picture, this.most),
      element("p", { class: "note", text: note }),
    );
  }

  /** values: oldest first; null leaves a gap. text: instead of the newest value. */
  draw(values, text = null, top = this.top) {
    const known = values.filter((value) => value !== null && value !== undefined);
    const newest = known.at(-1) ?? null;
    const shown = text ?? (newest === null ? "–" : this.show(newest));
    const highest = Math.max(...known, 0);
    const scale = Math.max(highest * 1.1, top) || 1;
    this.value.textContent = shown;
    this.most.textContent = highest > 0 ? `peak ${this.show(highest)}` : "";
    this.picture.setAttribute("aria-label", `${this.title}: now ${shown}, peak ${this.show(highest)}`);
    const points = placed(values, scale);
    this.line.setAttribute("d", path(points));
    this.area.setAttribute("d", points.length > 1 ? `${path(points)}V${HEIGHT}H${points[0][0]}Z` : "");
  }
}

// The newest at the right edge. What was not measured keeps the height of what was before.
function placed(values, scale) {
  const step = WIDTH / (LENGTH - 1);
  const left = WIDTH - (values.length - 1) * step;
  const points = [];
  let last = null;
  values.forEach((value, index) => {
    last = value ?? last;
    if (last !== null) points.push([left + index * step, HEIGHT - 2 - (last / scale) * (HEIGHT - 6)]);
  });
  return points;
}

const path = (points) =>
  points.map(([x, y], index) => `${index === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
