// The messages of the conversation in front, and a welcome where there are none.

import { announce, element, iconButton } from "../dom.js";
import { splitThinking } from "../data/thinking.js";
import { MessageView } from "./message.js";

const NEAR_PX = 80;
// An answer is parsed again while it grows, but not for more than a part of the time.
const REST = 4;
const READ_ALOUD = 1000;

const EXAMPLES = {
  bundled: ["What is 34 plus 25?", "How do I start the server?", "Tell me a story."],
  other: [
    "Explain continuous batching to a colleague.",
    "Write a Python function that merges two sorted lists.",
    "What should I know about you?",
  ],
};

export class Transcript {
  constructor(session, box) {
    Object.assign(this, { session, box, views: new Map(), due: 0, waiting: null });
    this.list = element("div", { class: "messages" });
    this.down = iconButton("down", "To the newest message", () => this.toEnd());
    this.down.classList.add("to-end");
    box.append(this.list);
    box.after(this.down);
    box.addEventListener("scroll", () => this.#scrolled());
    session.addEventListener("path", () => this.#path());
    session.addEventListener("node", ({ detail }) => this.#grew(detail));
    session.addEventListener("busy", () => this.#busy());
    session.addEventListener("models", () => this.#models());
    session.addEventListener("open", () => (this.views = new Map()));
    this.#path();
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
    this.#scrolled();
  }

  /** Open the last question for editing. */
  editLast() {
    const last = this.session.path.findLast(({ role }) => role === "user");
    this.views.get(last?.id)?.edit();
  }

  #path() {
    const path = this.session.path;
    this.views = new Map(path.map((node) => [node.id, this.views.get(node.id) ?? this.#view(node)]));
    for (const view of this.views.values()) view.render();
    const views = [...this.views.values()].map((view) => view.element);
    this.list.replaceChildren(...(views.length > 0 ? views : [this.#welcome()]));
    this.toEnd();
  }

  // The welcome names the model, and an answer may wait for it.
  #models() {
    const last = this.session.path.at(-1);
    if (last === undefined) this.#path();
    else if (this.session.busy && !last.content) this.views.get(last.id)?.render();
  }

  #view(node) {
    return new MessageView(this.session, node);
  }

  #welcome() {
    const model = this.session.model;
    const examples = (model === "bundled" ? EXAMPLES.bundled : EXAMPLES.other).map((text) =>
      element("button", { type: "button", class: "example", text, onclick: () => this.session.say(text) }),
    );
    return element(
      "div",
      { class: "welcome" },
      element("h1", { text: model ? `Ask ${model.split("/").at(-1)}` : "Connecting..." }),
      element("div", { class: "examples" }, model ? examples : []),
    );
  }

  // At most one rendering is due, and none sooner than some times what the last one took.
  #grew(node) {
    if (this.waiting !== null) return;
    const wait = Math.max(this.due - performance.now(), 0);
    this.waiting = setTimeout(() => requestAnimationFrame(() => this.#redraw(node)), wait);
  }

  #redraw(node) {
    this.waiting = null;
    const began = performance.now();
    const atEnd = this.#isAtEnd();
    this.views.get(node.id)?.render();
    if (atEnd) this.toEnd();
    const ended = performance.now();
    this.due = ended + REST * (ended - began);
  }

  #busy() {
    clearTimeout(this.waiting);
    this.waiting = null;
    const last = this.session.path.at(-1);
    const atEnd = this.#isAtEnd();
    this.views.get(last?.id)?.render();
    if (atEnd) this.toEnd();
    if (last?.role !== "assistant") return;
    if (this.session.busy) announce("The answer is being written.");
    else announce(spoken(last));
  }

  #isAtEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR_PX;
  }

  #scrolled() {
    this.down.hidden = this.#isAtEnd();
  }
}

function spoken({ error, calls, content }) {
  if (error) return `Error: ${error.message}`;
  const answer = splitThinking(content).answer.slice(0, READ_ALOUD);
  const called = calls.map(({ name }) => `The model calls ${name}.`).join(" ");
  return `${answer} ${called}`.trim() || "The answer is empty.";
}
