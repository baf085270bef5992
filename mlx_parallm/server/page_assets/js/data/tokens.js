// Tokens of an answer with their probabilities: {text, bytes, logprob, top, picked}.

/**
 * From the API's logprobs. top: the likeliest alternatives, best first. bytes: only of a token
 * that is a part of a character; null where the text says it all.
 */
export function tokenOf(entry) {
  return { ...likely(entry), top: (entry.top_logprobs ?? []).map(likely) };
}

function likely({ token, bytes, logprob }) {
  const whole = !bytes || new TextDecoder().decode(new Uint8Array(bytes)) === token;
  const partial = !whole || token.includes("\uFFFD");
  return { text: token, bytes: partial ? bytes : null, logprob };
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
 * Where each token begins and ends in an answer's text; null for tokens before it (reasoning), and
 * instead of all where the text is not found in the tokens.
 */
export function placesOf(tokens, text) {
  const pieces = piecesOf(tokens);
  const joined = pieces.join("");
  // Reasoning comes first; SentencePiece has a blank before the first word.
  const base = joined.startsWith(text) ? 0 : joined.lastIndexOf(text);
  if (text === "" || base < 0) return null;
  let at = -base;
  return pieces.map((piece) => {
    const start = at;
    at += piece.length;
    return at < 0 || (at === 0 && start < 0) ? null : [Math.max(start, 0), at];
  });
}

// A token may end inside of a character, whose text then comes with the next one.
function piecesOf(tokens) {
  const decoder = new TextDecoder("utf-8");
  return tokens.map((token) => {
    if (isEnd(token)) return "";
    if (!token.bytes) return token.text;
    return decoder.decode(new Uint8Array(token.bytes), { stream: true });
  });
}

/** The text up to a token and then an alternative of it; null where one cannot go on there. */
export function prefixWith(node, index, alternative) {
  const places = placesOf(node.tokens, node.content);
  if (!places?.[index] || isEnd(alternative)) return null;
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
