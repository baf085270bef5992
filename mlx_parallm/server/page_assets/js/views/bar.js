// The line at the top: which model answers, and the ways to everything else.

import { isReady, stateOf } from "../data/models.js";
import { copy, element, iconButton } from "../dom.js";

export class Bar {
  constructor(session, box, { toggleSidebar, togglePanel, ...toggle }) {
    this.session = session;
    this.models = element("select", { id: "model", "aria-label": "Model" });
    this.models.addEventListener("change", () => session.choose(this.models.value));
    const menu = iconButton("menu", "Conversations", toggleSidebar);
    menu.classList.add("menu");
    this.settings = iconButton("settings", "Settings", togglePanel, { "aria-expanded": "false" });
    this.views = {
      decisions: iconButton("scale", "Decisions", () => toggle.view("decisions")),
      models: iconButton("models", "Models", () => toggle.view("models")),
      dashboard: iconButton("pulse", "Server dashboard", () => toggle.view("dashboard")),
    };
    this.shows("chat");
    const curl = iconButton("terminal", "Copy the conversation as curl", (event) => {
      copy(session.curl(), event.currentTarget);
    });
    const space = element("span", { class: "space" });
    box.append(menu, this.models, space, curl, ...Object.values(this.views), this.settings);
    session.addEventListener("models", () => this.#models());
  }

  /** Which view is in front: the chat, or one of those that have a button here. */
  shows(view) {
    for (const [name, button] of Object.entries(this.views)) button.setAttribute("aria-pressed", String(name === view));
  }

  // Adapters stand below their model.
  #models() {
    const { model } = this.session;
    const models = this.session.models.cards;
    const base = models.filter(({ parent }) => parent === null || parent === undefined);
    const known = new Set(base.map(({ id }) => id));
    const below = (id) => models.filter(({ parent }) => parent === id);
    const orphans = models.filter(({ parent }) => parent && !known.has(parent));
    const parts = [...base, ...orphans].map((card) => {
      const adapters = known.has(card.id) ? below(card.id) : [];
      if (adapters.length === 0) return option(card);
      return element("optgroup", { label: card.id }, [card, ...adapters].map(option));
    });
    this.models.replaceChildren(...parts);
    this.models.value = model;
    this.models.disabled = models.length === 0;
  }
}

function option(card) {
  const state = isReady(card) ? "" : ` (${stateOf(card)})`;
  return element("option", { value: card.id, text: `${card.parent ? `${card.id} · adapter` : card.id}${state}` });
}
