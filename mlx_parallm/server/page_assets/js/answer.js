// An answer while it streams: events in, a message of the conversation out.

import { explain, send } from "./server/api.js";
import { events } from "./server/events.js";
import { tokenOf } from "./data/tokens.js";

/**
 * Ask for an answer and write it into a message until it ends.
 *
 * changed: called after each event. An error, or that it was stopped, is in the message too.
 */
export async function stream(node, body, signal, changed) {
  const began = performance.now();
  node.times = { first: null, total: null };
  try {
    const response = await send("v1/chat/completions", { method: "POST", body, signal });
    for await (const event of events(response)) {
      if (node.times.first === null && says(event)) node.times.first = performance.now() - began;
      take(node, event);
      changed();
    }
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else node.error = told(error);
  }
  node.times.total = performance.now() - began;
}

function says(event) {
  const delta = event.choices?.[0]?.delta ?? {};
  return Boolean(delta.content || delta.reasoning_content || delta.reasoning || delta.tool_calls);
}

function take(node, event) {
  if (event.usage) node.usage = event.usage;
  const choice = event.choices?.[0];
  if (choice === undefined) return;
  const delta = choice.delta ?? {};
  node.content += delta.content ?? "";
  node.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
  for (const call of delta.tool_calls ?? []) takeCall(node.calls, call);
  for (const entry of choice.logprobs?.content ?? []) node.tokens.push(tokenOf(entry));
  if (choice.citations) node.citations = choice.citations;
  if (choice.finish_reason) node.finish = choice.finish_reason;
}

// The name comes first and whole, the arguments in pieces.
function takeCall(calls, { index = 0, id, function: piece = {} }) {
  calls[index] ??= { id: id ?? `call-${index}`, name: "", arguments: "" };
  calls[index].name += piece.name ?? "";
  calls[index].arguments += piece.arguments ?? "";
}

function told(error) {
  return {
    message: explain(error),
    status: error.status ?? 0,
    param: error.param ?? null,
    retryAfter: error.retryAfter ?? null,
  };
}
