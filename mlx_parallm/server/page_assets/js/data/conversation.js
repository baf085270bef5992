// A conversation is a tree: an edited question or another answer is one more branch.

/** What belongs to a conversation and not to the browser. */
export function newPurpose() {
  return { system: "", schema: null, tools: [], collections: [], topk: 8 };
}

export function newConversation() {
  const now = Date.now();
  return {
    id: crypto.randomUUID?.() ?? randomId(),
    title: "",
    created: now,
    updated: now,
    purpose: newPurpose(),
    nodes: {},
    // Which branch is shown: the child of each node ("" is the root).
    chosen: {},
  };
}

/** A message. role: "user", "assistant" or "tool". pictures: of a user's; see pictures.js. */
export function newNode(role, content, more = {}) {
  const node = { id: randomId(), parent: "", role, content, created: Date.now() };
  if (role === "assistant") {
    Object.assign(node, { reasoning: "", calls: [], tokens: [], citations: null, finish: null });
    Object.assign(node, { usage: null, times: null, error: null, model: "", request: null });
    // The text that it was made to begin with.
    node.begun = "";
  }
  if (role === "user") node.pictures = [];
  return { ...node, ...more };
}

// crypto.randomUUID is there on loopback and over TLS only.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Put a message behind another one ("" is the beginning) and show it. */
export function add(conversation, parent, node) {
  node.parent = parent;
  conversation.nodes[node.id] = node;
  conversation.chosen[parent] = node.id;
  conversation.updated = Date.now();
  if (!conversation.title && node.role === "user") conversation.title = titleOf(node);
  return node;
}

function titleOf({ content, pictures = [] }) {
  const line = (content.trim() || pictures.map(({ name }) => name).join(", ")).replaceAll(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 57)}...` : line;
}

/** The messages that are shown, first to last. */
export function pathOf(conversation) {
  const path = [];
  let id = conversation.chosen[""];
  while (id !== undefined && conversation.nodes[id] !== undefined) {
    path.push(conversation.nodes[id]);
    id = conversation.chosen[id];
  }
  return path;
}

/** The messages before one. */
export function pathBefore(conversation, node) {
  const path = [];
  for (let id = node.parent; id; id = conversation.nodes[id].parent) {
    path.unshift(conversation.nodes[id]);
  }
  return path;
}

/** All branches that begin where this message does, the oldest first. */
export function siblings(conversation, node) {
  const all = Object.values(conversation.nodes);
  return all.filter((other) => other.parent === node.parent);
}

/** Show another branch. */
export function choose(conversation, node) {
  conversation.chosen[node.parent] = node.id;
}
