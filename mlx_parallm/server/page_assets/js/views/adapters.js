// The adapters of one model: their versions, a new one from a folder, an earlier one again.

import { bytes } from "../data/units.js";
import { copy, element, iconButton, toast } from "../dom.js";
import { explain, json } from "../server/api.js";
import { changeOf } from "../server/request.js";
import { confirm } from "./dialogs.js";

export class AdapterList {
  constructor(session, model) {
    Object.assign(this, { session, model, cards: [], problem: "" });
    this.list = element("ul", { class: "adapters" });
    this.told = element("p", { class: "problem", role: "status" });
    this.form = this.#form();
    this.element = element("section", { class: "of-model", "aria-label": `Adapters of ${model}` });
    this.element.append(this.list, this.told, this.form);
  }

  async refresh() {
    try {
      const { data } = await json("v1/adapters", { model: this.model });
      this.cards = data;
      this.told.textContent = "";
    } catch (error) {
      this.told.textContent = explain(error);
    }
    this.list.replaceChildren(...this.cards.map((card) => this.#item(card)));
    this.list.hidden = this.cards.length === 0;
  }

  #item(card) {
    const facts = [
      card.version === null ? "read at its first use" : `version ${card.version}`,
      card.rank ? `rank ${card.rank}` : "",
      card.bytes ? bytes(card.bytes) : "",
      card.resident ? "in memory" : "",
    ];
    const earlier = card.versions.filter((version) => version !== card.version);
    const back = earlier.map((version) => this.#rollBack(card, version));
    const more = element("button", { type: "button", class: "link", text: "New version" });
    more.setAttribute("aria-label", `New version of ${card.id}`);
    more.addEventListener("click", () => this.#open(card));
    return element(
      "li",
      { class: "adapter" },
      element("span", { class: "adapter-name", text: card.id }),
      element("span", { class: "quiet", text: facts.filter(Boolean).join(" · ") }),
      element("span", { class: "adapter-buttons" }, back, more),
      iconButton("trash", `Forget the adapter ${card.id}`, () => this.#remove(card)),
    );
  }

  #rollBack({ id, version: now }, version) {
    const text = `${version < now ? "Back" : "On"} to ${version}`;
    const press = () => this.#try(`v1/adapters/${encodeURIComponent(id)}/rollback`, "POST", { version });
    const button = element("button", { type: "button", class: "link", text, onclick: press });
    button.setAttribute("aria-label", `${text} of ${id}`);
    return button;
  }

  async #remove({ id }) {
    const text = "Requests can no longer name it. Its files stay where they are.";
    if (!(await confirm(`Forget ${id}?`, text, "Forget"))) return;
    await this.#try(`v1/adapters/${encodeURIComponent(id)}`, "DELETE");
  }

  #open({ id, path }) {
    this.form.open = true;
    Object.assign(this.name, { value: id });
    Object.assign(this.path, { value: path ?? "" });
    this.#fit();
    this.path.focus();
    this.path.select();
  }

  #form() {
    const field = (label, more) => element("input", { type: "text", required: true, spellcheck: "false", "aria-label": label, placeholder: label, ...more });
    this.name = field("Name", { maxlength: 200 });
    this.path = field("Folder on the server");
    this.add = element("button", { type: "submit", class: "plain" });
    this.name.addEventListener("input", () => this.#fit());
    this.#fit();
    const curl = iconButton("terminal", `Copy as curl: an adapter of ${this.model}`, (event) => {
      copy(changeOf("v1/adapters", { body: this.#asked, model: this.model }), event.currentTarget);
    });
    const form = element("form", { class: "row" }, this.name, this.path, curl, this.add);
    form.addEventListener("submit", (event) => this.#submit(event));
    return element("details", {}, element("summary", { text: "Load an adapter" }), form);
  }

  get #isKnown() {
    return this.cards.some(({ id }) => id === this.name.value.trim());
  }

  get #asked() {
    return { name: this.name.value.trim(), path: this.path.value.trim(), replace: this.#isKnown };
  }

  #fit() {
    this.add.textContent = this.#isKnown ? "Load as the next version" : "Load";
  }

  async #submit(event) {
    event.preventDefault();
    if (!(await this.#try("v1/adapters", "POST", this.#asked))) return;
    this.name.value = this.path.value = "";
    this.form.open = false;
    this.#fit();
  }

  async #try(path, method, body = null) {
    try {
      await json(path, { method, body, admin: true, model: this.model });
    } catch (error) {
      toast(explain(error), "error");
      return false;
    }
    await Promise.all([this.refresh(), this.session.models.refresh()]);
    return true;
  }
}
