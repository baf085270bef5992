// The list of conversations, with what can be done to all of them.

import { download, exported, imported } from "../data/transfer.js";
import { element, icon, iconButton, toast } from "../dom.js";
import { askText, confirm } from "./dialogs.js";
import { themeSwitch } from "./theme_switch.js";

const DAY = 24 * 3600 * 1000;

export class Sidebar {
  constructor(session, box, { close, openDashboard }) {
    Object.assign(this, { session, close });
    this.list = element("div", { class: "conversations" });
    this.filter = element("input", { type: "search", placeholder: "Search", "aria-label": "Search conversations" });
    this.filter.addEventListener("input", () => this.#list());
    this.live = element("button", { type: "button", class: "live", onclick: openDashboard, title: "Server dashboard" });
    const fresh = element("button", { type: "button", class: "fresh" }, icon("plus"), "New conversation");
    fresh.addEventListener("click", () => {
      session.fresh();
      close();
    });
    box.append(
      element("div", { class: "brand" }, element("img", { src: "page/icon.svg", alt: "" }), "mlx_parallm"),
      fresh,
      this.filter,
      this.list,
      this.live,
      this.#foot(),
    );
    session.addEventListener("list", () => this.#list());
    session.addEventListener("busy", () => this.#list());
    this.#list();
  }

  #foot() {
    const file = element("input", { type: "file", accept: ".json,application/json", class: "unseen", tabindex: "-1" });
    file.setAttribute("aria-label", "File to import");
    file.addEventListener("change", () => this.#import(file));
    return element(
      "div",
      { class: "foot" },
      iconButton("export", "Export all conversations", () => this.#export(this.session.conversations)),
      iconButton("import", "Import conversations", () => file.click()),
      file,
      element("span", { class: "space" }),
      themeSwitch(),
    );
  }

  #list() {
    const words = this.filter.value.trim().toLowerCase();
    const found = this.session.conversations.filter((one) => matches(one, words));
    this.filter.hidden = this.session.conversations.length < 8 && words === "";
    const groups = Map.groupBy?.(found, ageOf) ?? new Map([["Conversations", found]]);
    const parts = [...groups].map(([age, all]) => [
      element("h2", { text: age }),
      element("ul", {}, all.map((conversation) => this.#item(conversation))),
    ]);
    const none = words ? "Nothing found." : "Conversations are kept in this browser.";
    this.list.replaceChildren(...(found.length > 0 ? parts.flat() : [element("p", { class: "quiet", text: none })]));
  }

  #item(conversation) {
    const { session } = this;
    const current = conversation === session.current;
    const open = () => {
      session.open(conversation.id);
      this.close();
    };
    const title = conversation.title || "Untitled";
    const running = session.running.has(conversation.id);
    return element(
      "li",
      { class: current ? "current" : "" },
      element("button", { type: "button", class: "title", text: title, onclick: open, "aria-current": current && "true" }),
      running ? element("span", { class: "running", title: "An answer is being written" }) : null,
      element(
        "span",
        { class: "tools" },
        iconButton("export", `Export: ${title}`, () => this.#export([conversation])),
        iconButton("edit", `Rename: ${title}`, () => this.#rename(conversation)),
        iconButton("trash", `Delete: ${title}`, () => this.#remove(conversation)),
      ),
    );
  }

  async #rename(conversation) {
    const title = await askText("Name of the conversation", conversation.title);
    if (title !== null) this.session.rename(conversation, title);
  }

  async #remove(conversation) {
    const text = `"${conversation.title || "Untitled"}" is removed from this browser.`;
    if (await confirm("Delete the conversation?", text, "Delete")) this.session.remove(conversation.id);
  }

  #export(conversations) {
    const day = new Date().toISOString().slice(0, 10);
    download(`conversations-${day}.json`, exported(conversations));
  }

  async #import(file) {
    try {
      const conversations = imported(await file.files[0].text());
      await this.session.take(conversations);
      toast(conversations.length === 1 ? "One conversation imported." : `${conversations.length} conversations imported.`);
    } catch (error) {
      toast(error.message, "error");
    }
    file.value = "";
  }
}

function matches({ title, nodes }, words) {
  if (words === "" || title.toLowerCase().includes(words)) return true;
  return Object.values(nodes).some(({ content }) => content.toLowerCase().includes(words));
}

function ageOf({ updated }) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return "Today";
  if (updated >= midnight - DAY) return "Yesterday";
  return updated >= midnight - 7 * DAY ? "Last week" : "Earlier";
}
