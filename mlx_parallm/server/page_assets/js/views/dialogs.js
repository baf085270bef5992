// Questions in front of the page: the API key, a name, "are you sure?", and the keys.

import { element } from "../dom.js";
import { setAdminKey, setKey } from "../server/api.js";

/** Show a dialog and give its form's value: what submitted it, or "" when it was closed. */
function ask(title, ...content) {
  const buttons = content.pop();
  const heading = element("h2", { text: title });
  const form = element("form", { method: "dialog" }, heading, ...content, buttons);
  const dialog = element("dialog", { "aria-label": title }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}

const choices = (...buttons) => element("div", { class: "row end" }, buttons);
const choice = (text, value, kind = "plain") => {
  const properties = { class: kind, value, text };
  // Enter in a field presses the first button that submits: that is not "Cancel".
  if (value !== "") return element("button", properties);
  const close = (event) => event.currentTarget.closest("dialog").close("");
  return element("button", { ...properties, type: "button", onclick: close });
};

const LOCKS = {
  api: {
    title: "API key",
    text: "This server asks for an API key. It is kept in this browser only.",
    set: setKey,
  },
  admin: {
    title: "Admin key",
    text: "Whoever changes this server needs its admin key. It is forgotten with this tab.",
    set: setAdminKey,
  },
};
const asking = {};

/** Ask for a key, "api" or "admin"; whether one was given. All who need it wait for one answer. */
export function askForKey(kind, error) {
  asking[kind] ??= askOnce(LOCKS[kind], error).finally(() => delete asking[kind]);
  return asking[kind];
}

async function askOnce({ title, text, set }, error) {
  const field = element("input", { type: "password", autocomplete: "off", "aria-label": title });
  const told = element("p", { class: "quiet", text: error.message });
  const buttons = choices(choice("Cancel", ""), choice("Use", "yes", "primary"));
  const answer = await ask(title, element("p", { text }), field, told, buttons);
  if (answer !== "yes" || !field.value.trim()) return false;
  set(field.value.trim());
  return true;
}

/** "Are you sure?" */
export async function confirm(title, text, verb) {
  const buttons = choices(choice("Cancel", ""), choice(verb, "yes", "danger"));
  return (await ask(title, element("p", { text }), buttons)) === "yes";
}

/** A line of text; null when it was cancelled. */
export async function askText(title, value) {
  const field = element("input", { type: "text", value, "aria-label": title });
  const buttons = choices(choice("Cancel", ""), choice("Save", "yes", "primary"));
  return (await ask(title, field, buttons)) === "yes" ? field.value : null;
}

const KEYS = [
  ["Enter", "send"],
  ["Shift + Enter", "a new line"],
  ["Esc", "stop the answer, close what is open"],
  ["Up, in an empty box", "edit the last message"],
  ["/", "go to the message box"],
  ["Alt + N", "new conversation"],
  ["Alt + S", "settings"],
  ["Alt + M", "models"],
  ["Alt + D", "server dashboard"],
  ["Left, Right on a token", "the token beside it; Enter: its alternatives"],
  ["?", "this list"],
];

/** What can be done with keys. */
export function showKeys() {
  const rows = KEYS.map(([name, text]) => [element("dt", {}, element("kbd", { text: name })), element("dd", { text })]);
  return ask("Keys", element("dl", { class: "keys" }, rows.flat()), choices(choice("Close", "", "primary")));
}
