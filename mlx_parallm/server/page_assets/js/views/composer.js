// The box to write in, and what holds for this conversation in one line above it.

import { isReady, stateOf } from "../data/models.js";
import { bytes } from "../data/units.js";
import { element, icon } from "../dom.js";
import { PictureTray } from "./picture_tray.js";

export class Composer {
  constructor(session, box, openPanel, editLast) {
    Object.assign(this, { session, openPanel, editLast });
    this.chips = element("div", { class: "chips", "aria-label": "In force" });
    this.text = element("textarea", {
      id: "message",
      rows: "1",
      placeholder: "Write a message",
      "aria-label": "Message",
      "aria-describedby": "composer-hint",
    });
    this.button = element("button", { type: "submit", class: "send" });
    this.note = element("p", { class: "note", role: "status" });
    const hint = element("p", { id: "composer-hint", class: "hint" });
    hint.textContent = "Enter sends, Shift+Enter is a new line, Esc stops, ? shows all keys";
    this.tray = new PictureTray(session, document.getElementById("chat"), () => this.#note(), true);
    const line = element("div", { class: "line" }, this.tray.button, this.tray.file, this.text, this.button);
    const form = element("form", { class: "box" }, this.tray.list, line);
    form.addEventListener("submit", (event) => this.#submit(event));
    this.text.addEventListener("keydown", (event) => this.#key(event));
    this.text.addEventListener("input", () => this.#resize());
    box.append(element("div", { class: "width" }, this.note, this.chips, form, hint));
    session.addEventListener("busy", () => this.#busy());
    session.addEventListener("purpose", () => this.#purpose());
    session.addEventListener("open", () => this.text.focus());
    session.addEventListener("models", () => this.#note());
    this.#busy();
    this.#purpose();
  }

  #submit(event) {
    event.preventDefault();
    if (this.session.busy) {
      this.session.stop();
      return;
    }
    const text = this.text.value;
    const pictures = this.tray.pictures.length > 0;
    if ((!text.trim() && !pictures) || (pictures && this.tray.refusal)) return;
    this.text.value = "";
    this.#resize();
    this.session.say(text, this.tray.take());
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.session.busy) this.#submit(event);
    }
    if (event.key === "ArrowUp" && this.text.value === "") {
      event.preventDefault();
      this.editLast();
    }
  }

  #resize() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, 260)}px`;
  }

  // That an answer waits for its model, or cannot be had, is known before it is asked for.
  #note() {
    const { card } = this.session;
    const blind = this.tray.pictures.length > 0 && this.tray.refusal;
    const text = blind ? `${blind} Take the pictures away, or choose another model.` : card === null ? "" : loadingNote(card);
    if (this.note.textContent !== text) this.note.textContent = text;
    this.note.classList.toggle("bad", Boolean(blind) || card?.status === "failed");
  }

  #busy() {
    const label = this.session.busy ? "Stop" : "Send";
    this.button.replaceChildren(icon(label.toLowerCase()));
    this.button.setAttribute("aria-label", label);
    this.button.title = label;
  }

  #purpose() {
    const { system, schema, tools, collections } = this.session.current.purpose;
    const chips = [];
    const clear = (changes) => () => this.session.aim(changes);
    if (system.trim()) chips.push(this.#chip("person", "System prompt", clear({ system: "" })));
    if (schema !== null) chips.push(this.#chip("braces", "JSON schema", clear({ schema: null })));
    if (tools.length > 0) {
      const text = tools.length === 1 ? "1 tool" : `${tools.length} tools`;
      chips.push(this.#chip("tool", text, clear({ tools: [] })));
    }
    if (collections.length > 0) {
      chips.push(this.#chip("book", collections.join(", "), clear({ collections: [] })));
    }
    this.chips.replaceChildren(...chips);
  }

  #chip(picture, text, clear) {
    const open = element("button", { type: "button", onclick: () => this.openPanel() }, icon(picture), text);
    const off = element("button", { type: "button", onclick: clear, "aria-label": `Remove: ${text}` }, icon("close"));
    return element("span", { class: "chip" }, open, off);
  }
}

function loadingNote(card) {
  if (isReady(card)) return "";
  const size = card.bytes ? ` (${bytes(card.bytes)})` : "";
  if (card.status === "unloaded") return `${card.id}${size} is not loaded: the first message loads it, and then is answered.`;
  if (card.status === "failed") return `${card.id} could not be loaded: ${card.error} A message tries it again.`;
  return `${card.id} is ${stateOf(card)}. A message waits for it.`;
}
