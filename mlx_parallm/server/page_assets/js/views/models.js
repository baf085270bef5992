// The models of the server: how each one is, loading and unloading, and what can be added.

import { isReady, share, stateOf } from "../data/models.js";
import { bytes, percent, whole } from "../data/units.js";
import { announce, copy, element, icon, iconButton, toast } from "../dom.js";
import { explain, json } from "../server/api.js";
import { changeOf } from "../server/request.js";
import { AdapterList } from "./adapters.js";
import { PullForm } from "./pull_form.js";

const ALONE = "A server that is started with --models-dir, or with several --model-path, loads and unloads models here.";

export class ModelsView {
  /** chat: goes to the conversation. */
  constructor(session, box, chat) {
    Object.assign(this, { session, box, chat, adapters: new Map(), asked: new Set() });
    this.summary = element("p", { class: "state", role: "status" });
    this.meter = element("div", { class: "meter", "aria-hidden": "true" }, element("span"));
    this.list = element("ul", { class: "models" });
    this.alone = element("p", { class: "quiet alone", text: ALONE });
    this.pull = new PullForm(session);
    const parts = [element("h1", { text: "Models" }), this.summary, this.meter, this.list, this.alone, this.pull.element];
    box.append(element("div", { class: "width" }, parts));
    session.addEventListener("models", () => this.#draw());
  }

  async show(shown) {
    const opens = shown && this.box.hidden;
    this.box.hidden = !shown;
    if (opens) {
      this.looks = false;
      this.#draw();
    }
    await this.session.models.watch(shown);
    if (opens) for (const list of this.adapters.values()) list.refresh();
  }

  #draw() {
    if (this.box.hidden) return;
    const { models } = this.session;
    this.#summarise(models);
    this.pull.element.hidden = !models.isFleet;
    this.alone.hidden = models.isFleet || models.cards.length === 0;
    if (models.isFleet && !this.looks) this.pull.look();
    this.looks = models.isFleet;
    const focused = document.activeElement?.closest?.(".model [data-act]")?.dataset.act;
    this.list.replaceChildren(...mains(models.cards).map((card) => this.#item(card)));
    // What was pressed is drawn anew; the focus stays on what took its place.
    if (focused) this.#focus(focused);
  }

  #focus(act) {
    this.list.querySelector(`[data-act="${CSS.escape(act)}"]`)?.focus();
  }

  #summarise({ cards, memory }) {
    const all = mains(cards);
    const ready = all.filter(isReady);
    const loaded = all.length === 1 ? "One model" : `${ready.length} of ${all.length} loaded`;
    const room = memory === null ? "" : ` · ${bytes(memory.used)} of ${bytes(memory.limit)} for weights`;
    if (this.summary.textContent !== loaded + room) this.summary.textContent = loaded + room;
    this.meter.hidden = memory === null;
    if (memory !== null) this.meter.firstChild.style.setProperty("--share", Math.min(memory.used / memory.limit, 1));
  }

  #item(card) {
    const kind = { ready: "good", loading: "busy", unloading: "busy", failed: "bad" }[card.status ?? "ready"] ?? "";
    const chosen = this.session.model === card.id;
    const head = element(
      "div",
      { class: "model-head" },
      element("i", { class: `dot ${kind}`, "aria-hidden": "true" }),
      element("h2", { text: card.id }),
      card.pinned ? element("span", { class: "tag" }, icon("pin"), "pinned") : null,
      chosen ? element("span", { class: "tag", text: "in the chat" }) : null,
    );
    const buttons = element("span", { class: "model-buttons" }, this.#buttons(card, chosen));
    const parts = [head, element("p", { class: "quiet", text: this.#facts(card) }), buttons];
    if (card.status === "loading") parts.push(bar(card));
    if (card.error) parts.push(element("p", { class: "error", text: card.error }));
    const item = element("li", { class: "model", "aria-label": `${card.id}: ${stateOf(card)}` }, parts);
    // To ask for them would load the model.
    if (isReady(card)) item.append(this.#adapterList(card).element);
    else this.adapters.delete(card.id);
    return item;
  }

  #facts(card) {
    const others = aliases(this.session.models.cards, card);
    const { completed, total } = card.progress ?? {};
    const facts = [
      stateOf(card),
      total ? `${bytes(completed)} of ${bytes(total)}` : card.bytes ? bytes(card.bytes) : "",
      card.max_model_len ? `${whole(card.max_model_len)} tokens of context` : "",
      card.requests ? (card.requests === 1 ? "1 request" : `${card.requests} requests`) : "",
      others.length > 0 ? `also called ${others.join(", ")}` : "",
    ];
    const text = facts.filter(Boolean).join(" · ");
    return text.charAt(0).toUpperCase() + text.slice(1);
  }

  #buttons(card, chosen) {
    const { id } = card;
    const use = button("Chat", "plain", `Chat with ${id}`, () => this.#chat(id));
    use.dataset.act = `chat ${id}`;
    if (!this.session.models.isFleet) return [use];
    const loads = !isReady(card);
    const [verb, text] = loads ? ["load", card.status === "failed" ? "Try again" : "Load"] : ["unload", "Unload"];
    const change = button(text, "plain", `${text}: ${id}`, () => this.#change(card, verb));
    change.dataset.act = `change ${id}`;
    const moving = card.status === "loading" || card.status === "unloading";
    // Not disabled, which would take the focus away from who uses keys.
    change.setAttribute("aria-disabled", String(moving || this.asked.has(id)));
    if (card.requests && !loads) change.title = "It answers requests now.";
    const curl = iconButton("terminal", `Copy as curl: ${verb} ${id}`, (event) => {
      copy(changeOf(pathOf(id, verb)), event.currentTarget);
    });
    return chosen && loads ? [curl, change, use] : [curl, use, change];
  }

  #chat(id) {
    this.session.choose(id);
    this.chat();
  }

  async #change(card, verb) {
    const { id } = card;
    if (this.asked.has(id) || card.status === "loading" || card.status === "unloading") return;
    this.asked.add(id);
    announce(verb === "load" ? `${id} is being loaded.` : `${id} is being unloaded.`);
    this.#draw();
    const asked = json(pathOf(id, verb), { method: "POST", admin: true });
    // Its status has changed when the server has the request; when it answers it is done.
    setTimeout(() => this.session.models.refresh(), 100);
    try {
      await asked;
      announce(verb === "load" ? `${id} is loaded.` : `${id} is unloaded.`);
    } catch (error) {
      // What the list shows of a failure need not be said twice.
      if (error.status !== 503 || verb !== "load") toast(explain(error), "error");
      announce(explain(error));
    }
    this.asked.delete(id);
    await this.session.models.refresh();
    this.#draw();
    // A question for the key came in between, and what was pressed is no longer there.
    if (document.activeElement === document.body) this.#focus(`change ${id}`);
  }

  #adapterList({ id }) {
    if (!this.adapters.has(id)) {
      this.adapters.set(id, new AdapterList(this.session, id));
      this.adapters.get(id).refresh();
    }
    return this.adapters.get(id);
  }
}

// Slashes stay as they are in commands that people read.
const pathOf = (id, verb) => `v1/models/${id.split("/").map(encodeURIComponent).join("/")}/${verb}`;

// Neither adapters nor other names of a model.
function mains(cards) {
  const base = cards.filter(({ parent }) => !parent);
  return base.filter((card) => card === base.find(({ root }) => root === card.root));
}

function aliases(cards, main) {
  const others = cards.filter((card) => !card.parent && card !== main && card.root === main.root);
  return others.map(({ id }) => id);
}

function bar({ id, progress }) {
  const far = share(progress);
  const text = far === null ? "" : percent(far);
  return element("progress", { value: far, "aria-label": `Loading ${id}`, "aria-valuetext": text || null });
}

function button(text, kind, label, onclick) {
  return element("button", { type: "button", class: kind, text, "aria-label": label, onclick });
}
