// How the server is now: moving plots of its own figures.

import { bytes, percent, whole } from "../data/units.js";
import { element } from "../dom.js";
import { Plot } from "./plot.js";

const rate = (value) => (value >= 10 || Number.isInteger(value) ? whole(value) : value.toFixed(1));
const milliseconds = (value) => (value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(1)} s`);

const PLOTS = {
  generated: { title: "Tokens a second", note: "Written by the model, all answers together", show: rate },
  rows: { title: "Batch", note: "Answers written in one step", show: rate, top: 1 },
  waiting: { title: "Queue", note: "Sequences that wait for their turn", show: whole, top: 1 },
  first: { title: "First token", note: "From the request to the first token, mean", show: milliseconds },
  between: { title: "Between tokens", note: "Mean of answers that ended", show: milliseconds },
  read: { title: "Prompt tokens a second", note: "Read, without what was cached", show: rate },
  keys: { title: "K and V in use", note: "Share of the memory for running sequences", show: percent },
  busy: { title: "Engine at work", note: "Share of the time", show: percent, top: 1 },
  prefixes: { title: "Prefix cache", note: "Kept of earlier prompts", show: bytes },
  guessed: { title: "Guesses accepted", note: "Of the tokens guessed ahead", show: percent, top: 1 },
};

export class Dashboard {
  constructor(session, metrics, box) {
    Object.assign(this, { session, metrics, box });
    this.plots = Object.entries(PLOTS).map(([name, options]) => [name, new Plot(options)]);
    this.facts = element("dl", { class: "facts" });
    this.state = element("p", { class: "state", role: "status" });
    const grid = element("div", { class: "plots" }, this.plots.map(([, plot]) => plot.element));
    box.append(element("div", { class: "width" }, element("h1", { text: "Server" }), this.state, this.facts, grid));
    metrics.addEventListener("change", () => this.#draw());
  }

  show(shown) {
    this.box.hidden = !shown;
    this.metrics.watch(shown);
    if (shown) this.#draw();
  }

  #draw() {
    if (this.box.hidden) return;
    const { now, problem, asleep } = this.metrics;
    const waits = `${this.session.model} is not loaded: a request loads it.`;
    this.#say(problem || (asleep ? waits : "Live, the last two minutes"));
    this.state.classList.toggle("bad", problem !== "");
    if (now === null) return;
    for (const [name, plot] of this.plots) this.#plot(name, plot, now);
    this.#facts(now);
  }

  // Said to a screen reader when it changes, not each second.
  #say(text) {
    if (this.state.textContent !== text) this.state.textContent = text;
  }

  #plot(name, plot, now) {
    const values = this.metrics.series(name);
    if (name === "guessed") plot.element.hidden = values.every((value) => value === null);
    const text = name === "rows" && now.most ? `${rate(now.rows)} of ${now.most}` : null;
    plot.draw(values, text);
  }

  #facts(now) {
    const { card } = this.session;
    const facts = [
      ["Model", this.session.model],
      ["Context", card?.max_model_len ? `${whole(card.max_model_len)} tokens` : "–"],
      ["Answered", whole(now.finished)],
      ["Failed", whole(now.failed)],
      ["From prefixes", now.cached === null ? "–" : `${percent(now.cached)} of prompts`],
    ];
    const items = facts.map(([name, text]) => element("div", {}, element("dt", { text: name }), element("dd", { text })));
    this.facts.replaceChildren(...items);
  }
}

/** One line for the sidebar: "● 3 answers · 420 tokens/s". */
export function liveLine({ now, problem, asleep }) {
  if (problem) return ["bad", problem];
  if (asleep) return ["", "Not loaded"];
  if (now === null) return ["", "Connecting"];
  if (now.running + now.waiting === 0 && now.generated < 0.5) return ["good", "Idle"];
  if (now.running === 0) return ["busy", `${rate(now.generated)} tokens/s`];
  const answers = now.running === 1 ? "1 answer" : `${now.running} answers`;
  return ["busy", `${answers} · ${rate(now.generated)} tokens/s`];
}
