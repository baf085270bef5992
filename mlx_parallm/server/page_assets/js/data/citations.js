// Which passages of memories an answer was made from, and where in the answer.

import { placesOf } from "./tokens.js";

// A token is cited where one memory has at least this share of its attention...
const SHARE = 0.1;
// ...and of what the answer's clearest token has.
const OF_CLEAREST = 0.4;
const PASSAGE = 160;

/**
 * Passages, each with the places in the answer that come from it:
 * {number, collection, document, text, weight, marks: [[start, end], ...]}.
 */
export function passagesOf(node) {
  if (!node.citations?.length) return [];
  const places = placesOf(node.tokens, node.content);
  const pieces = piecesByDocument(node.citations);
  const found = [];
  for (const { index, best } of citedTokens(node.citations)) {
    const place = places?.[index];
    if (places !== null && (!place || place[0] === place[1])) continue;
    const passage = passageAround(best, pieces.get(documentKey(best)), found);
    passage.weight = Math.max(passage.weight, best.weight);
    if (place) mark(passage, place);
  }
  return found;
}

function citedTokens(citations) {
  const cited = citations.map(({ index, memories }) => {
    const best = memories.reduce((one, other) => (other.weight > one.weight ? other : one), {
      weight: 0,
    });
    return { index, best };
  });
  const clearest = Math.max(...cited.map(({ best }) => best.weight));
  const bound = Math.max(SHARE, OF_CLEAREST * clearest);
  return cited.filter(({ best }) => best.weight >= bound);
}

const documentKey = ({ collection, document_id: id }) => JSON.stringify([collection, id]);

// The server names memories token by token; what all tokens saw of a document lies together.
function piecesByDocument(citations) {
  const documents = new Map();
  for (const memory of citations.flatMap(({ memories }) => memories)) {
    const key = documentKey(memory);
    if (!documents.has(key)) documents.set(key, new Map());
    documents.get(key).set(memory.start, memory);
  }
  const sorted = ([key, pieces]) => [
    key,
    [...pieces.values()].sort((one, other) => one.start - other.start),
  ];
  return new Map([...documents].map(sorted));
}

function passageAround(memory, pieces, found) {
  const inside = (passage) =>
    passage.key === documentKey(memory) && passage.start <= memory.start && memory.end <= passage.end;
  const known = found.find(inside);
  if (known) return known;
  const at = pieces.findIndex((piece) => piece.start === memory.start);
  let [first, last] = [at, at];
  while (first > 0 && joins(pieces, first - 1, memory, true)) first -= 1;
  while (last + 1 < pieces.length && joins(pieces, last, memory, false)) last += 1;
  const passage = {
    number: found.length + 1,
    key: documentKey(memory),
    collection: memory.collection,
    document: memory.document_id,
    start: pieces[first].start,
    end: pieces[last].end,
    text: pieces.slice(first, last + 1).map((piece) => piece.text).join("").trim(),
    weight: memory.weight,
    marks: [],
  };
  found.push(passage);
  return passage;
}

// Whether piece `left` and the one after it are neighbours of one sentence.
function joins(pieces, left, memory, before) {
  const [one, other] = [pieces[left], pieces[left + 1]];
  const near = before ? memory.end - one.start : other.end - memory.start;
  return one.end === other.start && near <= PASSAGE && !/[.!?\n]\s*$/.test(one.text);
}

function mark(passage, [start, end]) {
  const last = passage.marks.at(-1);
  if (last && start - last[1] <= 1) last[1] = end;
  else passage.marks.push([start, end]);
}
