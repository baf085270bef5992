// Server-sent events of a response, one JSON object each.

import { ApiError } from "./api.js";

/**
 * The objects of a stream that ends with [DONE].
 *
 * Throws an ApiError for an error event, and where the stream breaks off.
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, { message: "The connection was lost before the answer ended." });
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = dataOf(part);
      if (data === "[DONE]") return;
      if (data === "") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(500, event.error);
      yield event;
    }
  }
}

function dataOf(part) {
  const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
