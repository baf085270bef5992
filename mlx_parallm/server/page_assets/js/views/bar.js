// The line at the top: which model answers, and the ways to everything else.

import { copy, element, iconButton } from "../dom.js";

export class Bar {
  constructor(session, box, { toggleSidebar, togglePanel, toggleDecisions, toggleDashboard }) {
    this.session = session;
    this.models = element("select", { id: "model", "aria-label": "Model" });
    this.models.addEventListener("change", () => {
      session.sample({ model: this.models.value });
      session.dispatchEvent(new CustomEvent("models"));
    });
    const menu = iconButton("menu", "Conversations", toggleSidebar);
    menu.classList.add("menu");
    this.settings = iconButton("settings", "Settings", togglePanel, { "aria-expanded": "false" });
    this.dashboard = iconButton("pulse", "Server dashboard", toggleDashboard, { "aria-pressed": "false" });
    this.decisions = iconButton("scale", "Decisions", toggleDecisions, { "aria-pressed": "false" });
    const curl = iconButton("terminal", "Copy the conversation as curl", (event) => {
      copy(session.curl(), event.currentTarget);
    });
    const space = element("span", { class: "space" });
    box.append(menu, this.models, space, curl, this.decisions, this.dashboard, this.settings);
    session.addEventListener("models", () => this.#models());
  }

  // Adapters stand below their model.
  #models() {
    const { models, model } = this.session;
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

function option({ id, parent, status }) {
  const state = status && status !== "ready" ? ` (${status})` : "";
  return element("option", { value: id, text: `${parent ? `${id} · adapter` : id}${state}` });
}
