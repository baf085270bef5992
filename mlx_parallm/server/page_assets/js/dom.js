// Making elements, and the icons on buttons.

/**
 * An element. Properties: "class", "text", "on..." functions, "data" (an object), and attributes
 * (true is an empty one; false and null are left out). Children: nodes, texts, null.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) setProperty(made, name, value);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function setProperty(target, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === "text") target.textContent = value;
  else if (name === "class") target.className = value;
  else if (name === "data") Object.assign(target.dataset, value);
  else if (name === "value") target.value = value;
  else if (name.startsWith("on")) target.addEventListener(name.slice(2), value);
  else target.setAttribute(name, value === true ? "" : value);
}

const SVG = "http://www.w3.org/2000/svg";

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Paths on a field of 24 x 24, drawn with a stroke.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  again: "M19 12a7 7 0 1 1-2.1-5M19 4v4h-4",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10.5 11v5M13.5 11v5",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M6 10l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  export: "M12 4v11M7.5 10.5L12 15l4.5-4.5M5 19h14",
  import: "M12 15V4M7.5 8.5L12 4l4.5 4.5M5 19h14",
  terminal: "M5 7l5 5-5 5M12 17h7",
  bars: "M6 19v-6M12 19V5M18 19v-9",
  scale: "M12 4v16M8 20h8M5 7h14M5 7l-3 7h6zM19 7l-3 7h6z",
  pulse: "M3 12h4l3-7 4 14 3-7h4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M5.6 18.4L7 17M17 7l1.4-1.4",
  moon: "M19 14.5A7.5 7.5 0 0 1 9.5 5a7.5 7.5 0 1 0 9.5 9.5z",
  screen: "M4 5h16v11H4zM9 20h6M12 16v4",
  go: "M8 5l9 7-9 7z",
  tool: "M14.5 6.5a4 4 0 0 0-5 5L4 17l3 3 5.5-5.5a4 4 0 0 0 5-5L15 12l-3-3z",
  book: "M5 5h6a2 2 0 0 1 2 2v12a2 2 0 0 0-2-2H5zM19 5h-4a2 2 0 0 0-2 2v12a2 2 0 0 1 2-2h4z",
  braces: "M9 5c-3 0-1 6-4 7 3 1 1 7 4 7M15 5c3 0 1 6 4 7-3 1-1 7-4 7",
  person: "M12 4.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM5 20c.5-4 3-6 7-6s6.5 2 7 6",
  models: "M12 3.5l7.5 4.2v8.6L12 20.5l-7.5-4.2V7.7zM4.5 7.7L12 12l7.5-4.3M12 12v8.5",
  picture: "M4 5h16v14H4zM4 16l4.5-4.5L13 16l3-3 4 4M15.5 9.4h.01",
  pin: "M9 4h6l-.8 6 3.3 3.5h-11L9.8 10zM12 13.5V20",
  keyboard: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8",
};

/** A picture beside a text or on a button that has a label. */
export function icon(name) {
  const drawn = svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" });
  drawn.append(svg("path", { d: ICONS[name] }));
  return drawn;
}

/** A button that is an icon; the label is its name and its tooltip. */
export function iconButton(name, label, onclick, more = {}) {
  const properties = { type: "button", class: "icon-button", "aria-label": label, title: label };
  return element("button", { ...properties, onclick, ...more }, icon(name));
}

/** Tell a screen reader. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** A short notice in the corner. */
export function toast(text, kind = "note") {
  const shown = element("div", { class: `toast ${kind}`, text });
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), kind === "error" ? 8000 : 2500);
}

/** Copy, and say so on the button that was pressed. */
export async function copy(text, button = null) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text);
  }
  announce("Copied");
  if (button === null) return;
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(...before), 1200);
}

// Browsers offer the clipboard on loopback and over TLS only.
function copyBySelection(text) {
  const area = element("textarea", { class: "unseen", value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
