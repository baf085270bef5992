// A box for JSON that says at once whether it can be used.

import { element } from "../dom.js";

let made = 0;

/**
 * value: what it holds, null for nothing. example: what a press of a button fills in.
 * check: what is wrong with a value ("" is nothing). changed: called with each good value.
 */
export function jsonBox({ label, value, example, check, changed }) {
  const id = `json-${(made += 1)}`;
  const text = element("textarea", { id, class: "json", rows: "4", spellcheck: "false" });
  text.value = value === null ? "" : JSON.stringify(value, null, 2);
  const told = element("p", { class: "problem", role: "status" });
  const read = () => {
    const { found, problem } = parsed(text.value, check);
    told.textContent = problem;
    text.setAttribute("aria-invalid", String(problem !== ""));
    if (problem === "") changed(found);
  };
  text.addEventListener("input", read);
  const fill = element("button", { type: "button", class: "link", text: "Example" });
  fill.addEventListener("click", () => {
    text.value = JSON.stringify(example, null, 2);
    read();
  });
  const head = element("div", { class: "row between" }, element("label", { for: id, class: "label", text: label }), fill);
  return element("div", { class: "field" }, head, text, told);
}

function parsed(text, check) {
  if (!text.trim()) return { found: null, problem: "" };
  try {
    const found = JSON.parse(text);
    return { found, problem: check(found) };
  } catch (error) {
    return { found: null, problem: `No JSON yet: ${error.message}` };
  }
}
