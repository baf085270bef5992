// Markdown of answers as safe elements: parsed, sanitised, code in colours.

import { marked } from "../vendor/marked.js";
import DOMPurify from "../vendor/purify.js";
import hljs from "../vendor/highlight.js";
import { copy, element, icon } from "./dom.js";

const LANGUAGES = "bash cpp diff go java javascript json python rust sql typescript xml yaml";
const loaded = new Map();

// Around cited words, in the text before it is parsed: characters for private use.
export const MARK_START = "\uE000";
export const MARK_END = "\uE001";
const NUMBERS = 0xe100;

export const markNumber = (number) => String.fromCharCode(NUMBERS + number);

marked.use({ gfm: true, breaks: true });
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** Elements for a text. */
export function rendered(text) {
  const html = marked.parse(text);
  const fragment = DOMPurify.sanitize(html, {
    RETURN_DOM_FRAGMENT: true,
    FORBID_TAGS: ["style", "form", "button", "textarea", "select"],
    FORBID_ATTR: ["style", "id", "name"],
  });
  for (const block of fragment.querySelectorAll("pre")) dressCode(block);
  for (const table of fragment.querySelectorAll("table")) wrapTable(table);
  for (const image of fragment.querySelectorAll("img")) keepOffTheNetwork(image);
  markCitations(fragment);
  return fragment;
}

/** A block of code on its own. */
export function codeBlock(text, language) {
  const block = element("pre", {}, element("code", { class: `language-${language}`, text }));
  const box = element("div", {}, block);
  dressCode(block);
  return box.firstElementChild;
}

function dressCode(block) {
  const code = block.querySelector("code") ?? block;
  const language = /language-([\w+-]+)/.exec(code.className)?.[1] ?? "";
  const text = code.textContent;
  const button = element("button", { type: "button", class: "icon-button", "aria-label": "Copy code" });
  button.title = "Copy code";
  button.append(icon("copy"));
  button.addEventListener("click", () => copy(text, button));
  const head = element("div", { class: "code-head" }, element("span", { text: language }), button);
  const box = element("div", { class: "code" }, head);
  block.replaceWith(box);
  block.tabIndex = 0;
  box.append(block);
  colour(code, language);
}

async function colour(code, name) {
  const language = { js: "javascript", ts: "typescript", py: "python", sh: "bash", html: "xml" }[name] ?? name;
  if (!LANGUAGES.split(" ").includes(language)) return;
  if (!loaded.has(language)) loaded.set(language, load(language));
  if (!hljs.getLanguage(language)) await loaded.get(language);
  const made = hljs.highlight(code.textContent, { language }).value;
  code.replaceChildren(DOMPurify.sanitize(made, { RETURN_DOM_FRAGMENT: true }));
}

async function load(language) {
  const grammar = await import(`../vendor/languages/${language}.js`);
  hljs.registerLanguage(language, grammar.default);
}

function wrapTable(table) {
  const box = element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" });
  table.replaceWith(box);
  box.append(table);
}

// The policy of the page lets no image in from elsewhere; its address is shown instead.
function keepOffTheNetwork(image) {
  const source = image.getAttribute("src") ?? "";
  if (source.startsWith("data:")) return;
  const link = element("a", { href: source, target: "_blank", rel: "noopener noreferrer" });
  link.textContent = image.alt || source;
  image.replaceWith(link);
}

function markCitations(fragment) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  for (const text of texts) {
    if (/[\uE000\uE001]/.test(text.data)) text.replaceWith(...pieces(text.data));
  }
}

// "...START words END number..." as marked words and a button; a part without its other half is
// dropped, as happens where a mark goes over the border of an element.
function pieces(text) {
  return text.split(/(\uE000[^\uE000\uE001]*\uE001.|\uE000|\uE001.)/su).flatMap((part) => {
    if (!/^[\uE000\uE001]/.test(part)) return part ? [part] : [];
    if (!part.includes(MARK_END)) return [];
    const number = part.codePointAt(part.length - 1) - NUMBERS;
    const words = part.startsWith(MARK_START) ? part.slice(1, -2) : "";
    return [element("mark", { class: "cited", text: words }), citationButton(number)];
  });
}

function citationButton(number) {
  return element("button", {
    type: "button",
    class: "cite",
    text: String(number),
    "aria-label": `Source ${number}`,
    data: { cite: String(number) },
  });
}
