// The box to write in, and what holds for this conversation in one line above it.

import { element, icon } from "../dom.js";

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
    const hint = element("p", { id: "composer-hint", class: "hint" });
    hint.textContent = "Enter sends, Shift+Enter is a new line, Esc stops, ? shows all keys";
    const form = element("form", { class: "box" }, this.text, this.button);
    form.addEventListener("submit", (event) => this.#submit(event));
    this.text.addEventListener("keydown", (event) => this.#key(event));
    this.text.addEventListener("input", () => this.#resize());
    box.append(element("div", { class: "width" }, this.chips, form, hint));
    session.addEventListener("busy", () => this.#busy());
    session.addEventListener("purpose", () => this.#purpose());
    session.addEventListener("open", () => this.text.focus());
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
    if (!text.trim()) return;
    this.text.value = "";
    this.#resize();
    this.session.say(text);
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
