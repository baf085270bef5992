// Tokens of an answer with their probabilities: {text, bytes, logprob, top, picked}.

/** From the API's logprobs. top: the likeliest alternatives, best first. */
export function tokenOf(entry) {
  const top = (entry.top_logprobs ?? []).map(({ token, bytes, logprob }) => {
    return { text: token, bytes, logprob };
  });
  return { text: entry.token, bytes: entry.bytes, logprob: entry.logprob, top };
}

/** A token that is not text but the end of an answer, as templates write it. */
export function isEnd(token) {
  return /^<[|｜].*[|｜]>$|^<\/s>$|^<(end_of_turn|eos)>$/u.test(token.text);
}

/** The text of bytes, or null where they end inside of a character. */
export function textOf(tokens) {
  const bytes = tokens.flatMap((token) => token.bytes ?? [...new TextEncoder().encode(token.text)]);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/**
 * Where each token begins and ends in an answer's text; null where tokens and text differ, as
 * they do where the server took reasoning or calls of tools out of the text.
 */
export function placesOf(tokens, text) {
  const decoder = new TextDecoder("utf-8");
  const encoder = new TextEncoder();
  const places = [];
  let at = 0;
  for (const token of tokens) {
    const bytes = token.bytes ? new Uint8Array(token.bytes) : encoder.encode(token.text);
    let piece = decoder.decode(bytes, { stream: true });
    // SentencePiece has a blank before the first word, which is not in the text.
    if (at === 0 && !text.startsWith(piece)) piece = piece.trimStart();
    if (isEnd(token) && !text.startsWith(piece, at)) piece = "";
    if (!text.startsWith(piece, at)) return null;
    places.push([at, at + piece.length]);
    at += piece.length;
  }
  return places;
}

/** The text up to a token and then an alternative of it; null where one cannot go on there. */
export function prefixWith(node, index, alternative) {
  const places = placesOf(node.tokens, node.content);
  if (places === null || isEnd(alternative)) return null;
  // The alternative may end inside of a character, as may the token before it.
  const before = textOf(node.tokens.slice(0, index));
  const piece = textOf([alternative]);
  if (before === null || piece === null) return null;
  return node.content.slice(0, places[index][0]) + piece;
}

/** From 0 (certain) to 5 (a surprise). */
export function surprise(logprob) {
  const chance = Math.exp(logprob);
  const level = [0.98, 0.9, 0.7, 0.4, 0.15].findIndex((bound) => chance >= bound);
  return level < 0 ? 5 : level;
}
