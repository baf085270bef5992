// The models of the server: which there are, and how each one is.

import { json } from "../server/api.js";
import { percent } from "./units.js";

const SOON_MS = 500;
const WATCHED_MS = 2000;
const LATER_MS = 10000;

/** Whether requests to it are answered without waiting for it. */
export const isReady = (card) => card.status === undefined || card.status === "ready";

const isMoving = ({ status }) => status === "loading" || status === "unloading";

/** How far it is, from 0 to 1; null where nobody knows. */
export function share(progress) {
  return progress?.total > 0 ? Math.min(progress.completed / progress.total, 1) : null;
}

const STATES = { ready: "loaded", unloaded: "not loaded", failed: "could not be loaded" };

/** How a model is, in words: "not loaded", "reading 40%". */
export function stateOf({ status, progress }) {
  const step = (status === "loading" && progress?.step) || status;
  const far = status === "loading" ? share(progress) : null;
  return `${STATES[step] ?? step ?? STATES.ready}${far === null ? "" : ` ${percent(far)}`}`;
}

/**
 * Asks /v1/models: once where there is one model; again and again where there are several, more
 * often while one is on its way or somebody looks, and not while the page is hidden.
 *
 * cards: as the server gives them. memory: {used, limit} in bytes, null unless there may be several
 * models. Events: "change", and "error" (detail: what was thrown).
 */
export class Models extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { cards: [], memory: null, watched: false, timer: 0, read: "" });
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    addEventListener("api-key", () => this.refresh());
  }

  /** Whether models are loaded and unloaded while the server runs. */
  get isFleet() {
    return this.memory !== null;
  }

  /** A model's or an adapter's card. */
  card(id) {
    return this.cards.find((card) => card.id === id) ?? null;
  }

  /** Whether the list is in front, where it is made new at once. */
  async watch(watched) {
    this.watched = watched;
    if (watched) await this.refresh();
  }

  async refresh() {
    clearTimeout(this.timer);
    const asked = (this.asked = {});
    try {
      const read = await json("v1/models");
      if (asked !== this.asked) return; // A later question is under way; its answer is newer.
      this.#take(read);
    } catch (error) {
      this.dispatchEvent(new CustomEvent("error", { detail: error }));
      // Without a key asking again is no use; a new one is told.
      if (error.status === 401) return;
    }
    const wait = this.#wait();
    clearTimeout(this.timer);
    if (wait !== null && !document.hidden) this.timer = setTimeout(() => this.refresh(), wait);
  }

  // An open menu must not be rebuilt for nothing.
  #take({ data, memory = null }) {
    const read = JSON.stringify([data, memory]);
    if (read === this.read) return;
    Object.assign(this, { cards: data, memory, read });
    this.dispatchEvent(new CustomEvent("change"));
  }

  #wait() {
    if (this.cards.some(isMoving)) return SOON_MS;
    if (!this.isFleet) return this.cards.some(isReady) ? null : WATCHED_MS;
    return this.watched ? WATCHED_MS : LATER_MS;
  }
}
