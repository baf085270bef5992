// Reasoning that a model writes into its text, between <think> and </think>.

const OPEN = "<think>";
const CLOSE = "</think>";

/**
 * A text's two parts. Some templates open the tag in the prompt, so that only its end is seen.
 * thinking: null where there is none. open: whether it goes on.
 */
export function splitThinking(text) {
  const end = text.indexOf(CLOSE);
  const begins = text.trimStart().startsWith(OPEN);
  if (!begins && end < 0) return { thinking: null, answer: text, open: false };
  const start = begins ? text.indexOf(OPEN) + OPEN.length : 0;
  const thinking = text.slice(start, end < 0 ? undefined : end).trim();
  const answer = end < 0 ? "" : text.slice(end + CLOSE.length).trimStart();
  return { thinking, answer, open: end < 0 };
}
