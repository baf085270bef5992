// Collections of memories: which ones the conversation uses, and new texts for them.

import { isReady } from "../data/models.js";
import { element, iconButton, toast } from "../dom.js";
import { explain, json } from "../server/api.js";
import { confirm } from "./dialogs.js";

const POLL_MS = 700;

export class MemoryList {
  constructor(session) {
    Object.assign(this, { session, collections: [], jobs: [], problem: "" });
    this.list = element("div", { class: "collections" });
    this.element = element("div", { class: "field memories" });
    this.element.append(element("span", { class: "label", text: "Memories" }), this.list, this.#form());
  }

  /** Ask the server what there is, again while it makes memories. */
  async refresh() {
    clearTimeout(this.timer);
    if (!this.session.card) return;
    const asked = (this.asked = {});
    // To look at them is no reason to load a model.
    if (!isReady(this.session.card)) return this.#wait();
    try {
      const { data, jobs } = await json(this.#path);
      if (asked !== this.asked) return; // A later question is under way; its answer is newer.
      this.collections = data;
      this.jobs = jobs.filter(({ status }) => status === "queued" || status === "running");
      this.problem = jobs.at(-1)?.status === "failed" ? (jobs.at(-1).error?.message ?? "It failed.") : "";
    } catch (error) {
      this.problem = explain(error);
    }
    this.#show();
    if (this.jobs.length > 0) this.timer = setTimeout(() => this.refresh(), POLL_MS);
  }

  #wait() {
    const text = `Shown once ${this.session.model} is loaded.`;
    this.list.replaceChildren(element("p", { class: "quiet", text }));
  }

  get #path() {
    return `v1/models/${encodeURIComponent(this.session.model)}/memories`;
  }

  #show() {
    const items = this.collections.map((collection) => this.#item(collection));
    const jobs = this.jobs.map(({ collection, progress }) =>
      element("label", { class: "job" }, `${collection} is being read`, element("progress", { value: progress })),
    );
    const none = element("p", { class: "quiet", text: "Texts that answers can use and cite. None yet." });
    const parts = items.length + jobs.length > 0 ? [...items, ...jobs] : [none];
    if (this.problem) parts.push(element("p", { class: "problem", text: this.problem }));
    this.list.replaceChildren(...parts);
  }

  #item({ id, num_memories: count, documents, problem }) {
    const box = element("input", { type: "checkbox" });
    box.checked = this.session.current.purpose.collections.includes(id);
    box.disabled = Boolean(problem) && !box.checked;
    box.addEventListener("change", () => this.#use(id, box.checked));
    const texts = documents.length === 1 ? "1 text" : `${documents.length} texts`;
    const facts = problem ?? `${texts}, ${count.toLocaleString("en")} tokens`;
    return element(
      "div",
      { class: "collection" },
      element("label", {}, box, element("span", { text: id }), element("span", { class: "quiet", text: facts })),
      iconButton("trash", `Delete the collection ${id}`, () => this.#remove(id)),
    );
  }

  #use(id, used) {
    const others = this.session.current.purpose.collections.filter((other) => other !== id);
    this.session.aim({ collections: used ? [...others, id] : others });
  }

  async #remove(id) {
    if (!(await confirm(`Delete ${id}?`, "Its texts are removed from the server.", "Delete"))) return;
    await this.#try(() => json(`${this.#path}?collection=${encodeURIComponent(id)}`, { method: "DELETE" }));
    this.#use(id, false);
    this.refresh();
  }

  #form() {
    const name = element("input", { type: "text", value: "notes", required: true, maxlength: 128, "aria-label": "Collection" });
    const text = element("textarea", { rows: "3", placeholder: "A text to remember", "aria-label": "Text to remember" });
    const file = element("input", { type: "file", accept: "text/*,.md,.txt", "aria-label": "File to remember" });
    file.addEventListener("change", async () => {
      if (file.files.length > 0) text.value = await file.files[0].text();
    });
    const add = element("button", { type: "submit", class: "plain", text: "Remember" });
    const form = element("form", { class: "new-memory" }, text, file, element("div", { class: "row" }, name, add));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!text.value.trim()) return;
      const body = { collection: name.value, text: text.value };
      if (!(await this.#try(() => json(this.#path, { method: "POST", body })))) return;
      text.value = file.value = "";
      this.#use(body.collection, true);
      this.refresh();
    });
    return element("details", {}, element("summary", { text: "Add a text" }), form);
  }

  async #try(work) {
    try {
      return await work();
    } catch (error) {
      toast(explain(error), "error");
      return null;
    }
  }
}
