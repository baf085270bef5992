// An answer as its tokens, tinted by how likely each was; alternatives to look at and go on from.

import { isEnd, prefixWith, surprise } from "../data/tokens.js";
import { element } from "../dom.js";

const HIDE_MS = 220;

/** The tokens of a message; goOn(prefix, tokens) is called for an alternative that was chosen. */
export function tokenView(node, goOn) {
  const spans = node.tokens.map((token, index) => tokenSpan(token, index));
  const box = element("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer" }, spans);
  if (spans.length > 0) spans[0].tabIndex = 0;
  const card = new Card(node, box, goOn);
  box.addEventListener("pointerover", (event) => card.over(event.target.closest(".token")));
  box.addEventListener("pointerleave", () => card.leave());
  box.addEventListener("focusin", (event) => card.over(event.target.closest(".token")));
  box.addEventListener("click", (event) => card.over(event.target.closest(".token")));
  box.addEventListener("keydown", (event) => walk(event, spans, card));
  return element("div", { class: "token-view" }, box, legend());
}

function tokenSpan(token, index) {
  const span = element("span", {
    class: `token level-${surprise(token.logprob)}${token.picked ? " picked" : ""}`,
    tabindex: "-1",
    role: "button",
    "aria-label": `${visible(token)}, ${percent(token.logprob)}`,
    data: { index: String(index) },
  });
  if (isEnd(token)) span.append(element("span", { class: "end", text: "end" }));
  else span.textContent = token.text;
  return span;
}

function legend() {
  const swatches = [0, 1, 2, 3, 4, 5].map((level) => element("i", { class: `level-${level}` }));
  return element("div", { class: "legend", "aria-hidden": "true" }, "certain", ...swatches, "surprising");
}

// One tab stop for all tokens; arrows go from one to the next.
function walk(event, spans, card) {
  const at = spans.indexOf(event.target);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape" && card.element !== null) {
    event.preventDefault();
    card.hide();
  }
  if (event.key === "Enter" || event.key === " ") card.enter(event);
  if (at < 0 || step === undefined) return;
  event.preventDefault();
  const next = spans[Math.min(Math.max(at + step, 0), spans.length - 1)];
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

const visible = (token) => (isEnd(token) ? "end of the answer" : token.text.replace(/^ /, "␣").replaceAll("\n", "⏎") || "∅");

function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  if (share > 99.95) return "100%";
  return share >= 0.1 ? `${share.toFixed(1)}%` : "<0.1%";
}

/** The card with a token's alternatives; one is shown at a time. */
class Card {
  static #shown = null;

  constructor(node, box, goOn) {
    Object.assign(this, { node, box, goOn, timer: 0, element: null, token: null });
  }

  over(token) {
    clearTimeout(this.timer);
    if (token === null || token === this.token) return;
    Card.#shown?.hide();
    Card.#shown = this;
    this.token = token;
    token.classList.add("open");
    this.element = this.#make(Number(token.dataset.index));
    this.box.after(this.element);
    this.#place(token);
  }

  leave() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.hide(), HIDE_MS);
  }

  hide() {
    clearTimeout(this.timer);
    this.token?.classList.remove("open");
    this.element?.remove();
    this.token = this.element = null;
  }

  /** Move the focus to the first alternative. */
  enter(event) {
    event.preventDefault();
    this.element?.querySelector("button:not(:disabled)")?.focus();
  }

  #make(index) {
    const token = this.node.tokens[index];
    const rows = withItself(token).map((alternative) => this.#row(token, index, alternative));
    const card = element("div", { class: "token-card", role: "dialog", "aria-label": "Alternatives" });
    card.append(...rows);
    card.addEventListener("pointerenter", () => clearTimeout(this.timer));
    card.addEventListener("pointerleave", () => this.leave());
    card.addEventListener("keydown", (event) => this.#keys(event));
    return card;
  }

  #row(token, index, alternative) {
    const taken = alternative.text === token.text;
    const prefix = taken ? null : prefixWith(this.node, index, alternative);
    const bar = element("span", { class: "bar" });
    bar.style.setProperty("--share", Math.exp(alternative.logprob));
    const label = element("span", { class: "alternative", text: visible(alternative) });
    const figure = element("span", { class: "figure", text: percent(alternative.logprob) });
    return element(
      "button",
      {
        type: "button",
        class: taken ? "taken" : "",
        disabled: prefix === null,
        title: taken ? "In the answer" : prefix === null ? "" : "Go on from here",
        onclick: () => this.#choose(prefix, token, index, alternative),
      },
      bar,
      label,
      figure,
    );
  }

  #choose(prefix, token, index, alternative) {
    const before = this.node.tokens.slice(0, index);
    this.hide();
    this.goOn(prefix, [...before, { ...alternative, top: token.top, picked: true }]);
  }

  #keys(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...this.element.querySelectorAll("button:not(:disabled)")];
    if (event.key === "Escape") {
      event.preventDefault();
      this.token.focus();
      this.hide();
    } else if (step !== undefined) {
      event.preventDefault();
      buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length]?.focus();
    }
  }

  // Below the token, or above where there is no room.
  #place(token) {
    const [spot, around] = [token.getClientRects()[0], this.box.parentElement.getBoundingClientRect()];
    const left = Math.min(spot.left - around.left, around.width - this.element.offsetWidth);
    this.element.style.left = `${Math.max(left, 0)}px`;
    const height = this.element.offsetHeight + 4;
    const frame = this.box.closest("#transcript").getBoundingClientRect();
    const above = spot.bottom + height > frame.bottom && spot.top - height > frame.top;
    this.element.style.top = `${above ? spot.top - around.top - height : spot.bottom - around.top + 4}px`;
  }
}

// The alternatives, and the token itself where it is none of the likeliest.
function withItself(token) {
  if (token.top.some(({ text }) => text === token.text)) return token.top;
  const { text, bytes, logprob } = token;
  return [...token.top, { text, bytes, logprob }];
}
