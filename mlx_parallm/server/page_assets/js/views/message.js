// One message: its text, what belongs to it, and what can be done with it.

import { passagesOf } from "../data/citations.js";
import { siblings } from "../data/conversation.js";
import { isReady, stateOf } from "../data/models.js";
import { splitThinking } from "../data/thinking.js";
import { copy, element, icon, iconButton } from "../dom.js";
import { MARK_END, MARK_START, codeBlock, markNumber, rendered } from "../markdown.js";
import { thumbnail } from "./thumbnail.js";
import { tokenView } from "./token_view.js";
import { toolCalls } from "./tool_calls.js";

/** The element of a message, kept up to date by render(). */
export class MessageView {
  constructor(session, node) {
    Object.assign(this, { session, node, asTokens: false, thinkingOpen: null });
    this.element = element("article", { class: `message ${node.role}`, data: { id: node.id } });
    this.element.addEventListener("click", (event) => this.#cite(event));
    this.render();
  }

  get #last() {
    return this.session.path.at(-1) === this.node;
  }

  get #writing() {
    return this.session.busy && this.#last;
  }

  render() {
    const body = { user: () => this.#user(), tool: () => this.#tool(), assistant: () => this.#answer() };
    this.element.setAttribute("aria-label", { user: "You", tool: "Tool", assistant: "Answer" }[this.node.role]);
    this.element.setAttribute("aria-busy", String(this.#writing));
    this.element.replaceChildren(...body[this.node.role]().filter((part) => part !== null));
  }

  // Of the user, and of a tool

  #user() {
    const text = this.node.content ? element("div", { class: "bubble", text: this.node.content }) : null;
    const edit = iconButton("edit", "Edit", () => this.edit());
    const copying = iconButton("copy", "Copy", (event) => copy(this.node.content, event.currentTarget));
    return [pictureList(this.node.pictures ?? []), text, element("div", { class: "actions" }, this.#versions(), copying, edit)];
  }

  /** Replace the text by a box to write another one in. */
  edit() {
    const box = element("textarea", { "aria-label": "Edit the message", value: this.node.content, rows: "3" });
    let pictures = this.node.pictures ?? [];
    const shown = element("div");
    const draw = () => shown.replaceChildren(pictureList(pictures, (gone) => {
      pictures = pictures.filter((picture) => picture !== gone);
      draw();
      box.focus();
    }) ?? "");
    draw();
    const send = () => (box.value.trim() || pictures.length > 0) && this.session.reword(this.node, box.value, pictures);
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.preventDefault();
        this.render();
      }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    const buttons = element(
      "div",
      { class: "row end" },
      element("button", { type: "button", class: "plain", text: "Cancel", onclick: () => this.render() }),
      element("button", { type: "button", class: "primary", text: "Send", onclick: send }),
    );
    this.element.replaceChildren(element("div", { class: "edit" }, shown, box, buttons));
    box.focus();
  }

  #tool() {
    const head = element("summary", {}, icon("tool"), ` Result of ${this.node.name ?? "a tool"}`);
    return [element("details", { class: "tool-result" }, head, element("pre", { text: this.node.content }))];
  }

  // Of the model

  #answer() {
    const { thinking, answer, open } = splitThinking(this.node.content);
    const reasoning = this.node.reasoning || thinking;
    const waits = this.#writing && !answer && !reasoning && this.node.calls.length === 0;
    return [
      element("div", { class: "who", text: this.node.model }),
      reasoning ? this.#thinking(reasoning, open || (!answer && this.#writing)) : null,
      waits ? this.#waiting() : null,
      this.asTokens && this.node.tokens.length > 0 ? this.#tokens() : this.#text(answer),
      toolCalls(this.session, this.node, this.#writing),
      this.#sources(),
      this.node.error ? this.#error(this.node.error) : null,
      this.#writing ? null : this.#footer(),
    ];
  }

  #waiting() {
    const card = this.session.models.card(this.node.model);
    const state = card && !isReady(card) ? stateOf(card) : "";
    const text = state ? element("span", { text: `The model is ${state}` }) : null;
    return element("div", { class: "waiting", "aria-label": state || "Waiting" }, dot(), dot(), dot(), text);
  }

  #thinking(text, goesOn) {
    const label = goesOn ? "Thinking..." : "Thought";
    const box = element("details", { class: "thinking", open: this.thinkingOpen ?? goesOn });
    box.append(element("summary", { text: label }), element("div", { class: "prose" }, rendered(text)));
    box.querySelector("summary").addEventListener("click", () => (this.thinkingOpen = !box.open));
    return box;
  }

  #tokens() {
    return tokenView(this.node, (prefix, tokens) => this.session.goOnFrom(this.node, prefix, tokens));
  }

  #text(answer) {
    if (!answer) return null;
    const asked = this.node.request?.response_format?.type === "json_schema";
    const shown = asked ? asJson(answer) : null;
    const box = element("div", { class: this.#writing ? "prose writing" : "prose" });
    box.append(shown === null ? rendered(this.#marked(answer)) : codeBlock(shown, "json"));
    return box;
  }

  // The answer with signs around its cited words. They are placed in the whole text, of which the
  // answer is the end.
  #marked(answer) {
    const offset = this.node.content.length - answer.length;
    const marks = passagesOf(this.node).flatMap(({ number, marks: all }) =>
      all.map(([start, end]) => ({ number, start: start - offset, end: end - offset })),
    );
    marks.sort((one, other) => other.start - one.start);
    return marks.reduce((text, { number, start, end }) => {
      if (start < 0) return text;
      const words = text.slice(start, end);
      const blank = words.length - words.trimStart().length;
      const shown = `${MARK_START}${words.trimStart()}${MARK_END}${markNumber(number)}`;
      return text.slice(0, start + blank) + shown + text.slice(end);
    }, answer);
  }

  #sources() {
    const passages = passagesOf(this.node);
    if (passages.length === 0) return null;
    const items = passages.map((passage) =>
      element(
        "li",
        { data: { source: String(passage.number) }, tabindex: "-1" },
        element("span", { class: "number", text: String(passage.number) }),
        element("q", { text: passage.text }),
        element("span", { class: "where", text: `${passage.collection} · ${passage.document}` }),
      ),
    );
    return element("ol", { class: "sources", "aria-label": "Sources" }, items);
  }

  #cite(event) {
    const number = event.target.closest?.(".cite")?.dataset.cite;
    if (number === undefined) return;
    const source = this.element.querySelector(`[data-source="${number}"]`);
    source?.focus();
    source?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  #error({ message, status, param, retryAfter }) {
    const facts = [status ? `status ${status}` : "", param ? `field ${param}` : ""];
    if (retryAfter) facts.push(`try again in ${retryAfter} s`);
    const box = element("div", { class: "error", role: "alert" }, element("p", { text: message }));
    const told = facts.filter(Boolean).join(" · ");
    if (told) box.append(element("p", { class: "facts", text: told }));
    const again = element("button", { type: "button", class: "plain", text: "Try again" });
    again.addEventListener("click", () => this.session.again(this.node));
    box.append(again);
    return box;
  }

  // Below an answer

  #footer() {
    const { node, session } = this;
    const text = splitThinking(node.content).answer;
    const more = node.finish === "length" || node.finish === "stopped";
    return element(
      "div",
      { class: "actions" },
      this.#versions(),
      text ? iconButton("copy", "Copy", (event) => copy(text, event.currentTarget)) : null,
      iconButton("again", "Answer again", () => session.again(node)),
      more && text ? iconButton("go", "Go on", () => session.goOn(node)) : null,
      node.tokens.length > 0 ? this.#tokenSwitch() : null,
      iconButton("terminal", "Copy as curl", (event) => copy(session.curl(node), event.currentTarget)),
      element("span", { class: "figures", text: figures(node) }),
    );
  }

  #tokenSwitch() {
    const press = () => {
      this.asTokens = !this.asTokens;
      this.render();
    };
    const label = "Tokens and probabilities";
    return iconButton("bars", label, press, { "aria-pressed": String(this.asTokens) });
  }

  #versions() {
    const all = siblings(this.session.current, this.node);
    if (all.length < 2) return null;
    const at = all.indexOf(this.node);
    const go = (step) => () => this.session.show(all[at + step]);
    return element(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      iconButton("left", "Earlier version", go(-1), { disabled: at === 0 }),
      element("span", { text: `${at + 1}/${all.length}` }),
      iconButton("right", "Later version", go(1), { disabled: at === all.length - 1 }),
    );
  }
}

// remove: called with a picture that is to go.
function pictureList(pictures, remove = null) {
  if (pictures.length === 0) return null;
  const items = pictures.map((picture) => thumbnail(picture, remove && (() => remove(picture))));
  return element("ul", { class: "thumbnails", "aria-label": "Pictures" }, items);
}

const dot = () => element("i");

function asJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return null; // not whole yet, or no JSON
  }
}

const ENDS = { length: "cut at the limit", stopped: "stopped" };

/** "48 tokens · 120 tokens/s · first after 0.05 s". */
export function figures({ usage, times, finish, tokens, begun }) {
  const parts = [];
  const count = usage?.completion_tokens ?? (begun ? 0 : tokens.length);
  if (count) parts.push(`${count} ${count === 1 ? "token" : "tokens"}`);
  if (count > 1 && times?.first) parts.push(`${rate(perSecond(count, times))}/s`);
  if (times?.first) parts.push(`first after ${seconds(times.first)}`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens cached`);
  if (ENDS[finish]) parts.push(ENDS[finish]);
  return parts.join(" · ");
}

// Without the wait for the first token, unless all came at once.
function perSecond(count, { first, total }) {
  const writing = total - first;
  return (writing > total / 10 ? (count - 1) / writing : count / total) * 1000;
}

const rate = (value) => (value >= 10 ? Math.round(value) : value.toFixed(1));
const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(milliseconds < 1000 ? 2 : 1)} s`;
