// What the page shows and does: the conversations, the one in front, and answers on their way.

import { add, choose, newConversation, newNode, pathBefore, pathOf } from "./data/conversation.js";
import { Models, isReady } from "./data/models.js";
import { loadSampling, saveSampling } from "./data/sampling.js";
import * as store from "./data/store.js";
import { toast } from "./dom.js";
import { key } from "./server/api.js";
import { chatBody, curlOf } from "./server/request.js";
import { stream } from "./answer.js";

const LOADING_MS = 100;

/**
 * Events: "list" (conversations), "open" (another one in front), "path" (its messages),
 * "node" (detail: a message that grew), "busy" (an answer began or ended), "purpose", "models".
 */
export class Session extends EventTarget {
  constructor() {
    super();
    this.conversations = [];
    this.current = newConversation();
    this.sampling = loadSampling();
    this.models = new Models();
    this.models.addEventListener("change", () => this.#tell("models"));
    this.running = new Map(); // id of a conversation -> its AbortController
  }

  /** Read what this browser has. */
  async load() {
    try {
      this.conversations = await store.all();
    } catch {
      toast("This browser keeps no data here: conversations last until you leave.", "error");
    }
    this.#tell("list");
  }

  get path() {
    return pathOf(this.current);
  }

  get busy() {
    return this.running.has(this.current.id);
  }

  /** The model that answers: the chosen one while the server has it. */
  get model() {
    return this.card?.id ?? "";
  }

  /** What the server says of it; null before it has said anything. */
  get card() {
    return this.models.card(this.sampling.model) ?? this.models.cards[0] ?? null;
  }

  /** Answer with another model from now on. */
  choose(model) {
    this.sample({ model });
    this.#tell("models");
  }

  // Conversations

  /** A new one in front; an empty one is used again. */
  fresh() {
    this.#front(newConversation());
  }

  open(id) {
    const found = this.conversations.find((conversation) => conversation.id === id);
    if (found) this.#front(found);
  }

  async remove(id) {
    this.running.get(id)?.abort();
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id);
    if (this.current.id === id) this.fresh();
    this.#tell("list");
    await store.remove(id);
  }

  rename(conversation, title) {
    conversation.title = title.trim() || conversation.title;
    this.#keep(conversation);
  }

  /** Take in conversations of a file; one with the same id takes the other's place. */
  async take(conversations) {
    const ids = new Set(conversations.map(({ id }) => id));
    const others = this.conversations.filter(({ id }) => !ids.has(id));
    this.conversations = [...conversations, ...others];
    await Promise.all(conversations.map((conversation) => store.save(conversation)));
    this.#tell("list");
    this.open(conversations[0]?.id);
  }

  #front(conversation) {
    this.current = conversation;
    for (const name of ["open", "list", "purpose", "path", "busy"]) this.#tell(name);
  }

  // Settings

  sample(changes) {
    Object.assign(this.sampling, changes);
    saveSampling(this.sampling);
  }

  /** Change what belongs to this conversation. */
  aim(changes) {
    Object.assign(this.current.purpose, changes);
    if (this.conversations.includes(this.current)) this.#keep(this.current);
    this.#tell("purpose");
  }

  // Messages

  say(text, pictures = []) {
    const last = this.path.at(-1);
    const node = add(this.current, last?.id ?? "", newNode("user", text, { pictures }));
    return this.#answer(node);
  }

  /** Another answer to the same question. */
  again(node) {
    return this.#answer(this.current.nodes[node.parent]);
  }

  /** The same question in other words, and its answer; the old ones are another branch. */
  reword(node, text, pictures = []) {
    return this.#answer(add(this.current, node.parent, newNode("user", text, { pictures })));
  }

  /** Go on where an answer ended. */
  goOn(node) {
    return this.goOnFrom(node, node.content, node.tokens);
  }

  /** Another answer that begins with a text, and the tokens of it. */
  goOnFrom(node, prefix, tokens) {
    const begun = newNode("assistant", prefix, { tokens: [...tokens], reasoning: node.reasoning });
    return this.#answer(this.current.nodes[node.parent], begun);
  }

  /** What a tool gave; once every call has its result, the model goes on. */
  result(node, call, text) {
    const last = this.path.at(-1);
    const added = add(this.current, last.id, newNode("tool", text, { callId: call.id, name: call.name }));
    const done = new Set(this.path.filter(({ role }) => role === "tool").map(({ callId }) => callId));
    if (node.calls.every(({ id }) => done.has(id))) return this.#answer(added);
    this.#keep(this.current);
    this.#tell("path");
    return null;
  }

  show(node) {
    choose(this.current, node);
    this.#keep(this.current);
    this.#tell("path");
  }

  stop() {
    this.running.get(this.current.id)?.abort();
  }

  /** A command that asks for this answer, or for the next one. */
  curl(node = null) {
    const path = node === null ? this.path : pathBefore(this.current, node);
    const begun = Boolean(node?.begun);
    if (begun) path.push({ ...node, content: node.begun, calls: [] });
    const made = chatBody(this.model, this.sampling, this.current.purpose, path, begun);
    const body = node?.request ? { ...node.request, messages: made.messages } : made;
    const pictures = path.flatMap((shown) => shown.pictures ?? []);
    return curlOf("v1/chat/completions", body, key() !== "", pictures);
  }

  async #answer(parent, node = newNode("assistant", "")) {
    const conversation = this.current;
    const continuing = node.content !== "";
    node.begun = node.content;
    node.model = this.model;
    add(conversation, parent.id, node);
    const path = continuing ? pathOf(conversation) : pathBefore(conversation, node);
    const body = chatBody(node.model, this.sampling, conversation.purpose, path, continuing);
    node.request = { ...body, messages: undefined };
    // One answer of a conversation at a time; those of others go on.
    this.stop();
    const stopper = new AbortController();
    this.running.set(conversation.id, stopper);
    this.#keep(conversation);
    this.#shown(conversation, "path");
    this.#shown(conversation, "busy");
    // It is loaded first; from now on the server says how far that is.
    if (this.card && !isReady(this.card)) setTimeout(() => this.models.refresh(), LOADING_MS);
    await stream(node, body, stopper.signal, () => this.#shown(conversation, "node", node));
    if (this.running.get(conversation.id) === stopper) this.running.delete(conversation.id);
    if (this.conversations.includes(conversation)) this.#keep(conversation);
    this.#shown(conversation, "node", node);
    this.#shown(conversation, "busy");
  }

  #shown(conversation, name, detail = null) {
    if (conversation === this.current) this.#tell(name, detail);
  }

  // In the list, and in the browser's store.
  #keep(conversation) {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort((one, other) => other.updated - one.updated);
    this.#tell("list");
    store.save(conversation).catch((error) => toast(`Not saved: ${error.message}`, "error"));
  }

  #tell(name, detail = null) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
