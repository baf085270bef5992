// The panel at the side: what holds for this conversation, and how answers are drawn.

import { element, iconButton } from "../dom.js";
import { key, setKey } from "../server/api.js";
import { jsonBox } from "./json_box.js";
import { MemoryList } from "./memory_list.js";

const NUMBERS = [
  ["temperature", "Temperature", "0 takes the likeliest token", { min: 0, max: 2, step: 0.1 }],
  ["top_p", "Top p", "Draw from the likeliest with this sum", { min: 0, max: 1, step: 0.05 }],
  ["top_k", "Top k", "Draw from so many; 0 is all", { min: 0, step: 1 }],
  ["min_p", "Min p", "Of the likeliest one's chance", { min: 0, max: 1, step: 0.01 }],
  ["max_tokens", "Longest answer", "In tokens", { min: 1, step: 1 }],
  ["seed", "Seed", "The same request gives the same answer", { step: 1 }],
  ["repetition_penalty", "Repetition penalty", "Above 1: fewer repeats", { min: 0.01, max: 10, step: 0.05 }],
  ["presence_penalty", "Presence penalty", "For tokens that were written", { min: -2, max: 2, step: 0.1 }],
  ["frequency_penalty", "Frequency penalty", "For each time", { min: -2, max: 2, step: 0.1 }],
];

const SCHEMA = {
  type: "object",
  properties: { answer: { type: "string" }, sure: { type: "boolean" } },
  required: ["answer", "sure"],
};
const TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

export class SettingsPanel {
  constructor(session, box, close) {
    Object.assign(this, { session, box, close });
    this.memories = new MemoryList(session);
    session.addEventListener("purpose", () => this.#purpose());
  }

  /** Build it anew: what it shows may have changed while it was closed. */
  open() {
    const head = element("h2", { text: "Settings" });
    const closing = iconButton("close", "Close settings", this.close);
    this.box.replaceChildren(
      element("header", {}, head, closing),
      this.#conversation(),
      this.#sampling(),
      this.#browser(),
    );
    this.memories.refresh();
  }

  // What a chip took away is gone from the panel too; typing in it must not be disturbed.
  #purpose() {
    if (!this.box.hidden && !this.box.contains(document.activeElement)) this.open();
  }

  #conversation() {
    const { purpose } = this.session.current;
    const system = element("textarea", { rows: "3", value: purpose.system, placeholder: "You are..." });
    system.addEventListener("input", () => this.session.aim({ system: system.value }));
    return section(
      "This conversation",
      labelled("System prompt", system),
      jsonBox({
        label: "JSON schema of the answer",
        value: purpose.schema,
        example: SCHEMA,
        check: (value) => (isObject(value) ? "" : "A schema is an object."),
        changed: (schema) => this.session.aim({ schema }),
      }),
      jsonBox({
        label: "Tools",
        value: purpose.tools.length > 0 ? purpose.tools : null,
        example: TOOLS,
        check: (value) => (Array.isArray(value) && value.every(isObject) ? "" : "Tools are a list of objects."),
        changed: (tools) => this.session.aim({ tools: tools ?? [] }),
      }),
      this.memories.element,
    );
  }

  #sampling() {
    const fields = NUMBERS.map(([name, label, hint, limits]) => this.#number(name, label, hint, limits));
    const stop = element("input", { type: "text", value: this.session.sampling.stop.join(", ") });
    stop.addEventListener("change", () => {
      const texts = stop.value.split(",").map((text) => text.trim());
      this.session.sample({ stop: texts.filter(Boolean) });
    });
    const shown = element("input", { type: "number", min: 0, max: 20, step: 1 });
    shown.value = this.session.sampling.alternatives;
    shown.addEventListener("change", () => {
      if (shown.reportValidity()) this.session.sample({ alternatives: Number(shown.value) });
    });
    return section(
      "Every answer",
      element("div", { class: "grid" }, fields, labelled("Alternatives", shown, "Kept for each token; 0 is none")),
      labelled("Stop at", stop, "Texts, with commas between them"),
    );
  }

  #number(name, label, hint, limits) {
    const { session } = this;
    const field = element("input", { type: "number", placeholder: "server's", ...limits });
    if (session.sampling[name] !== null) field.value = session.sampling[name];
    field.addEventListener("change", () => {
      // Steps are for the arrows; any number within the limits is fine.
      if (!field.validity.rangeUnderflow && !field.validity.rangeOverflow && !field.validity.badInput) {
        session.sample({ [name]: field.value === "" ? null : Number(field.value) });
      } else field.reportValidity();
    });
    return labelled(label, field, hint);
  }

  #browser() {
    const field = element("input", { type: "password", autocomplete: "off", value: key() });
    field.addEventListener("change", () => setKey(field.value.trim()));
    return section("This browser", labelled("API key", field, "Kept here only"));
  }
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function section(title, ...content) {
  return element("section", { class: "group" }, element("h3", { text: title }), content);
}

function labelled(text, field, hint = "") {
  const parts = [element("span", { class: "label", text }), field];
  if (hint) {
    field.title = hint;
    parts.push(element("span", { class: "quiet", text: hint }));
  }
  return element("label", { class: "field" }, parts);
}
