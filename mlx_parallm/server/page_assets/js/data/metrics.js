// What the server says about itself, asked again and again; figures as series over time.

import { explain, json } from "../server/api.js";

/** How many points a series has: two minutes at one a second. */
export const LENGTH = 120;

const FAST_MS = 1000;
const SLOW_MS = 5000;

/**
 * Asks /debug/metrics, once a second while somebody looks and less often otherwise, and not at
 * all while the page is hidden or the model is not loaded (asleep). Event "change": there is a new
 * point.
 *
 * whose: gives {model, ready}: the model that the figures are of.
 */
export class Metrics extends EventTarget {
  constructor(whose) {
    super();
    Object.assign(this, { whose, model: "", points: [], last: null, problem: "", asleep: false });
    Object.assign(this, { watched: false, timer: 0 });
    document.addEventListener("visibilitychange", () => this.#again(0));
    addEventListener("api-key", () => this.#again(0));
    this.#again(0);
  }

  /** Whether the figures are in front. */
  watch(watched) {
    this.watched = watched;
    this.#again(0);
  }

  get now() {
    return this.points.at(-1) ?? null;
  }

  /** The last two minutes of a figure; null where it is not known. */
  series(name) {
    return this.points.map((point) => point[name]);
  }

  #again(wait) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.#ask(), wait);
  }

  /** Another model may be meant, or be loaded. */
  again() {
    this.#again(0);
  }

  async #ask() {
    const { model, ready } = this.whose();
    if (model !== this.model) Object.assign(this, { model, points: [], last: null });
    this.asleep = !ready;
    if (this.asleep) {
      Object.assign(this, { problem: "", last: null });
      this.dispatchEvent(new CustomEvent("change"));
      return;
    }
    await this.#read(model);
    this.dispatchEvent(new CustomEvent("change"));
    // The first figures need two answers.
    this.#again(this.watched || this.points.length === 0 ? FAST_MS : SLOW_MS);
  }

  async #read(model) {
    try {
      const read = { ...(await json("debug/metrics", { asks: false, model })), at: performance.now() };
      if (model !== this.model) return;
      if (this.last !== null) this.#add(pointOf(this.last, read));
      this.last = read;
      this.problem = "";
    } catch (error) {
      this.problem = explain(error);
      this.last = null;
    }
  }

  #add(point) {
    this.points = [...this.points, point].slice(-LENGTH);
  }
}

// Figures of the time between two answers.
function pointOf(before, after) {
  const [old, engine] = [before.engine, after.engine];
  const seconds = (after.at - before.at) / 1000;
  const grown = (name) => (engine[name] ?? 0) - (old[name] ?? 0);
  return {
    at: after.at,
    running: engine.running,
    rows: share(grown("decode_rows"), grown("decode_steps")) ?? 0,
    most: after.max_batch_size ?? null,
    waiting: engine.waiting + (after.queued_requests ?? 0),
    generated: grown("generated_tokens") / seconds,
    read: Math.max(grown("computed_tokens") - grown("generated_tokens"), 0) / seconds,
    first: mean(before, after, "time_to_first_token_seconds"),
    between: mean(before, after, "time_per_output_token_seconds"),
    keys: share(engine.kv_tokens_used, engine.kv_tokens_total) ?? 0,
    bytes: engine.kv_bytes,
    prefixes: engine.prefix_bytes,
    cached: share(engine.prefix_hit_tokens, engine.prompt_tokens),
    busy: Math.min(grown("step_time") / seconds, 1),
    guessed: share(grown("accepted_tokens"), grown("drafted_tokens")),
    finished: engine.finished,
    failed: engine.failed,
  };
}

const share = (part, whole) => (whole > 0 ? part / whole : null);

// The mean of a histogram's observations in between; null where there was none.
function mean(before, after, name) {
  const grown = (end) => valueOf(after.server, name + end) - valueOf(before.server, name + end);
  return share(grown("_sum"), grown("_count"));
}

// Prefixes of names differ from version to version.
function valueOf(values, name) {
  const found = Object.keys(values).find((key) => key.endsWith(name));
  return found === undefined ? 0 : values[found];
}
