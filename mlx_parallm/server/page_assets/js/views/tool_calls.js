// Calls of tools in an answer, and boxes to give their results.

import { pathOf } from "../data/conversation.js";
import { element, icon } from "../dom.js";
import { codeBlock } from "../markdown.js";

/** The calls of an answer; null where there are none. */
export function toolCalls(session, node, writing) {
  if (node.calls.length === 0) return null;
  return element("div", { class: "calls" }, node.calls.map((call) => oneCall(session, node, call, writing)));
}

function oneCall(session, node, call, writing) {
  const head = element("div", { class: "call-head" }, icon("tool"), element("code", { text: call.name }));
  const box = element("section", { class: "call", "aria-label": `Call of ${call.name}` }, head);
  box.append(codeBlock(pretty(call.arguments), "json"));
  if (!writing && !isAnswered(session, node, call)) box.append(resultForm(session, node, call));
  return box;
}

function isAnswered(session, node, call) {
  const path = pathOf(session.current);
  const after = path.slice(path.indexOf(node) + 1);
  return after.some(({ role, callId }) => role !== "tool" || callId === call.id);
}

function resultForm(session, node, call) {
  const label = `Result of ${call.name}`;
  const text = element("textarea", { rows: "2", "aria-label": label, placeholder: "What the tool gives back" });
  const send = element("button", { type: "submit", class: "plain", text: "Send the result" });
  const form = element("form", { class: "row" }, text, send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    session.result(node, call, text.value);
  });
  return form;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not whole yet
  }
}
