// From a conversation to a request's body, and from a body to a curl command.

import { splitThinking } from "../data/thinking.js";
import { isVideoUrl } from "../data/videos.js";
import { adminKey, key } from "./api.js";

const SAMPLING = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "max_tokens",
  "seed",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
];

/**
 * The body of a chat request.
 *
 * sampling: numbers by name, null where the server decides. purpose: what belongs to the
 * conversation. continuing: the last message is an answer to write on in.
 */
export function chatBody(model, sampling, purpose, path, continuing = false) {
  const body = { model, messages: messagesOf(purpose, path) };
  for (const name of SAMPLING) if (sampling[name] !== null) body[name] = sampling[name];
  if (sampling.stop.length > 0) body.stop = sampling.stop;
  if (purpose.tools.length > 0) body.tools = purpose.tools;
  if (purpose.schema !== null) body.response_format = responseFormat(purpose.schema);
  addMemory(body, purpose);
  // What a citation marks is found by the tokens of the answer.
  if (sampling.alternatives > 0 || body.memory) body.logprobs = true;
  if (sampling.alternatives > 0) body.top_logprobs = sampling.alternatives;
  if (continuing) {
    const thought = path.at(-1).reasoning;
    if (thought) body.messages.at(-1).reasoning_content = thought;
    body.continue_final_message = true;
    body.add_generation_prompt = false;
  }
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

function responseFormat(schema) {
  return { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
}

function addMemory(body, purpose) {
  if (purpose.collections.length === 0) return;
  body.memory = { collections: purpose.collections, topk: purpose.topk, citations: "token" };
}

function messagesOf(purpose, path) {
  const system = purpose.system.trim() ? [{ role: "system", content: purpose.system }] : [];
  return [...system, ...path.map(messageOf).filter((message) => message !== null)];
}

function messageOf(node) {
  if (node.role === "tool") {
    return { role: "tool", tool_call_id: node.callId, content: node.content };
  }
  if (node.role === "user") return { role: "user", content: contentOf(node) };
  const content = splitThinking(node.content).answer;
  if (node.calls.length === 0) return content ? { role: "assistant", content } : null;
  const calls = node.calls.map(({ id, name, arguments: given }) => {
    return { id, type: "function", function: { name, arguments: given || "{}" } };
  });
  return { role: "assistant", content: content || null, tool_calls: calls };
}

function contentOf({ content, pictures = [] }) {
  if (pictures.length === 0) return content;
  const shown = pictures.map(({ url }) => {
    const type = isVideoUrl(url) ? "video_url" : "image_url";
    return { type, [type]: { url } };
  });
  return content.trim() ? [...shown, { type: "text", text: content }] : shown;
}

// One argument of a program holds 128 KiB on Linux.
const LONGEST_ARGUMENT = 100_000;

/**
 * A command for a shell that sends the body to a path of this server.
 *
 * pictures: those in the body. Where they are too long for a command it reads them from files of
 * their names, and says so.
 */
export function curlOf(path, body, locked, pictures = []) {
  const address = new URL(path, document.baseURI).href;
  const parts = [`curl -sN ${quoted(address)}`, "-H 'Content-Type: application/json'"];
  if (locked) parts.push('-H "Authorization: Bearer $API_KEY"');
  const text = JSON.stringify(body, null, 1);
  if (text.length <= LONGEST_ARGUMENT) return [...parts, `-d ${quoted(text)}`].join(" \\\n  ");
  return piped(text, pictures, [...parts, "-d @-"].join(" \\\n  "));
}

/** A command that changes the server. model: the one that is meant, where the path does not say. */
export function changeOf(path, { method = "POST", body = null, model = "" } = {}) {
  const parts = [`curl -sN -X ${method} ${quoted(new URL(path, document.baseURI).href)}`];
  if (key()) parts.push('-H "Authorization: Bearer $API_KEY"');
  if (adminKey()) parts.push('-H "X-Admin-Key: $ADMIN_KEY"');
  if (model) parts.push(`-H ${quoted(`X-Model: ${model}`)}`);
  if (body !== null) parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  return parts.join(" \\\n  ");
}

// The body in pieces, each written by a command of its own.
function piped(text, pictures, command) {
  const files = new Map(pictures.map(({ url, name }) => [dataOf(url), name]));
  let pieces = [text];
  for (const data of files.keys()) {
    pieces = pieces.flatMap((piece) => (files.has(piece) ? [piece] : between(piece.split(data), data)));
  }
  const written = pieces.map((piece) => {
    return files.has(piece) ? `base64 < ${quoted(files.get(piece))} | tr -d '\\n'` : `printf %s ${quoted(piece)}`;
  });
  const names = [...new Set(files.values())].join(", ");
  const note = files.size > 0 ? `# Pictures are read from files of this folder: ${names.replaceAll(/\s+/g, " ")}\n` : "";
  return `${note}{ ${written.join("\n  ")}\n} | ${command}`;
}

const dataOf = (url) => url.slice(url.indexOf(",") + 1);

const between = (parts, separator) => parts.flatMap((part, index) => (index === 0 ? [part] : [separator, part]));

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
