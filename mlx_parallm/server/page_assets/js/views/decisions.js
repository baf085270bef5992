// Typed questions about a text, answered with probabilities, which are shown as bars.

import { copy, element, iconButton } from "../dom.js";
import { explain, json, key } from "../server/api.js";
import { curlOf } from "../server/request.js";
import { PictureTray } from "./picture_tray.js";

const KINDS = {
  predicate: { label: "Yes or no", options: null },
  choice: { label: "One of", options: "choices" },
  score: { label: "How much", options: "levels" },
};
const EXAMPLE = {
  input: "The parcel came two weeks late, and nobody answered my letters.",
  questions: [
    { kind: "predicate", text: "Does the customer complain?", options: "" },
    { kind: "choice", text: "What is it about?", options: "delivery, price, quality" },
    { kind: "score", text: "How angry is the customer?", options: "calm, annoyed, furious" },
  ],
};

export class Decisions {
  constructor(session, box) {
    this.session = session;
    this.input = element("textarea", { rows: "4", "aria-label": "Text to decide about", value: EXAMPLE.input });
    this.questions = element("div", { class: "questions" });
    this.answers = element("div", { class: "decided", role: "status" });
    EXAMPLE.questions.forEach((question) => this.#add(question));
    const more = element("button", { type: "button", class: "plain", text: "Add a question" });
    more.addEventListener("click", () => this.#add({ kind: "predicate", text: "", options: "" }));
    const curl = iconButton("terminal", "Copy the questions as curl", (event) => {
      copy(curlOf("v1/decisions", this.#body(), key() !== "", this.tray.pictures), event.currentTarget);
    });
    const decide = element("button", { type: "submit", class: "primary", text: "Decide" });
    this.tray = new PictureTray(session, box);
    const row = element("div", { class: "row" }, more, this.tray.button, curl, element("span", { class: "space" }), decide);
    const form = element("form", {}, this.input, this.tray.list, this.tray.file, this.questions, row);
    form.addEventListener("submit", (event) => this.#decide(event));
    const about = element("p", { class: "quiet", text: "Each answer is a probability that is read from the model, not text that it writes." });
    box.append(element("div", { class: "width" }, element("h1", { text: "Decisions" }), about, form, this.answers));
  }

  #add({ kind, text, options }) {
    const kinds = Object.entries(KINDS).map(([value, { label }]) => element("option", { value, text: label }));
    const select = element("select", { "aria-label": "Kind of question" }, kinds);
    select.value = kind;
    const asked = element("input", { type: "text", required: true, value: text, placeholder: "Question", "aria-label": "Question" });
    const given = element("input", { type: "text", value: options, placeholder: "Options, with commas between them", "aria-label": "Options" });
    const row = element("div", { class: "question" }, select, asked, given);
    row.append(iconButton("close", "Remove the question", () => row.remove()));
    const fit = () => (given.hidden = KINDS[select.value].options === null);
    select.addEventListener("change", fit);
    fit();
    this.questions.append(row);
  }

  #body() {
    const rows = [...this.questions.children];
    const images = this.tray.pictures.map(({ url }) => url);
    const asked = { model: this.session.model, input: this.input.value, questions: rows.map(questionOf) };
    return images.length > 0 ? { ...asked, images } : asked;
  }

  async #decide(event) {
    event.preventDefault();
    const body = this.#body();
    try {
      const { answers } = await json("v1/decisions", { method: "POST", body });
      this.answers.replaceChildren(...answers.map((answer, at) => shown(body.questions[at], answer)));
    } catch (error) {
      this.answers.replaceChildren(element("div", { class: "error", role: "alert", text: explain(error) }));
    }
  }
}

function questionOf(row) {
  const [type, instructions, given] = [...row.querySelectorAll("select, input")].map(({ value }) => value);
  const names = given.split(",").map((name) => name.trim()).filter(Boolean);
  const question = { type, instructions };
  if (type === "choice") question.choices = names.map((value) => ({ value }));
  if (type === "score") question.levels = names.map((label) => ({ label }));
  return question;
}

function shown({ instructions }, answer) {
  const bars = outcomes(answer).map(({ name, probability }) => bar(name, probability));
  const best = answer.score === null || answer.score === undefined ? "" : ` · score ${answer.score.toFixed(2)}`;
  return element("section", { class: "decision" }, element("h2", { text: `${instructions}${best}` }), bars);
}

function outcomes({ probability, probabilities }) {
  if (probabilities) {
    return probabilities.map((one) => ({ name: String(one.label ?? one.value), probability: one.probability }));
  }
  return [
    { name: "yes", probability },
    { name: "no", probability: 1 - probability },
  ];
}

function bar(name, probability) {
  const percent = `${(probability * 100).toFixed(1)}%`;
  const filled = element("span", { class: "fill" });
  filled.style.setProperty("--share", probability);
  return element(
    "div",
    { class: "outcome" },
    element("span", { text: name }),
    element("span", { class: "track", "aria-hidden": "true" }, filled),
    element("span", { class: "figure", text: percent }),
  );
}
