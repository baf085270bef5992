// Conversations to a file and back.

import { add, newConversation, newNode, newPurpose } from "./conversation.js";
import { isPicture } from "./pictures.js";
import { isVideo } from "./videos.js";

const FORMAT = "mlx_parallm conversations";

export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** Offer a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/**
 * The conversations of a file: one of ours, or {"messages": [...]} as the API has it.
 *
 * Throws an Error that says what is wrong.
 */
export function imported(text) {
  let read = null;
  try {
    read = JSON.parse(text);
  } catch {
    throw new Error("The file holds no JSON.");
  }
  if (Array.isArray(read?.messages)) return [fromMessages(read.messages)];
  if (read?.format !== FORMAT || !Array.isArray(read.conversations)) {
    throw new Error("The file holds no conversations.");
  }
  return read.conversations.map(checked);
}

function checked(found) {
  const whole = typeof found?.id === "string" && typeof found.nodes === "object";
  if (!whole || typeof found.chosen !== "object" || found.nodes === null || found.chosen === null) {
    throw new Error("A conversation in the file is damaged.");
  }
  const entries = Object.entries(found.nodes);
  const nodes = Object.fromEntries(entries.map(([id, node]) => [id, checkedNode(id, node, found)]));
  if (!isTree(nodes, found.chosen)) throw new Error("The messages in the file are no tree.");
  const { id, title, created, updated, chosen } = found;
  const purpose = { ...newPurpose(), ...found.purpose };
  return { ...newConversation(), id, title: String(title), created, updated, chosen, purpose, nodes };
}

// What is walked through later has to end.
function isTree(nodes, chosen) {
  const size = Object.keys(nodes).length;
  for (const node of Object.values(nodes)) {
    let steps = 0;
    for (let id = node.parent; id; id = nodes[id].parent) if (++steps > size) return false;
  }
  return Object.entries(chosen).every(([parent, id]) => nodes[id]?.parent === parent);
}

function checkedNode(id, node, { nodes }) {
  const known = ["user", "assistant", "tool"].includes(node?.role);
  const placed = node?.id === id && (node.parent === "" || node.parent in nodes);
  if (!known || !placed || typeof node.content !== "string") {
    throw new Error("A message in the file is damaged.");
  }
  if (!(node.pictures ?? []).every?.(isShown)) throw new Error("A picture in the file is damaged.");
  return { ...newNode(node.role, node.content), ...node };
}

const isShown = (found) => isPicture(found) || isVideo(found);

// A text, or parts as the API has them.
function readContent(content) {
  if (typeof content === "string") return { content, pictures: [] };
  if (!Array.isArray(content)) throw new Error("A message in the file has no text.");
  const texts = content.filter(({ type }) => type === "text").map(({ text }) => String(text));
  const parts = content.filter(({ type }) => type === "image_url" || type === "video_url");
  const urls = parts.map((part) => part[part.type].url);
  const pictures = urls.map((url, index) => ({ name: `${parts[index].type === "video_url" ? "video" : "picture"} ${index + 1}`, url }));
  if (texts.length + urls.length < content.length) throw new Error("A message in the file has parts that cannot be shown.");
  if (!pictures.every(isShown)) throw new Error("A picture in the file is no data: URL.");
  return { content: texts.join("\n"), pictures };
}

function fromMessages(messages) {
  const conversation = newConversation();
  let parent = "";
  for (const { role, content: given } of messages) {
    const { content, pictures } = readContent(given);
    if (role === "system") conversation.purpose.system = content;
    else if (role === "user" || role === "assistant") {
      parent = add(conversation, parent, newNode(role, content, role === "user" ? { pictures } : {})).id;
    } else throw new Error(`A message in the file has the role ${role}.`);
  }
  return conversation;
}
