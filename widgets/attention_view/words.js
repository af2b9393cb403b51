// @ts-check
/// <reference path="base.js" />
/// <reference path="viewer.js" />
// What a map says, in numbers and words.

/** What a position attends to or is attended by: a value for each token, undefined where nothing is visible.
 * @param {Slot} slot @param {number} at @param {State} state @returns {(number | undefined)[]} */
function along({ part, piece: { item } }, at, { role, causal, sinks, masked }) {
  if (!part?.bytes.length || item.bins || at < 0 || at >= item.size) return [];
  return Array.from({ length: item.size }, (_, other) => {
    const [query, key] = role === "query" ? [at, other] : [other, at];
    if (causal && key > query) return undefined;
    return masked && sinks.includes(key) ? NaN : valueOf(part, part.bytes[indexOf(item.size, causal, query, key)]);
  });
}

/** @param {Piece} piece @param {number} position */
function tokenName({ tokens }, position) {
  return `'${visible(tokens[position])}' (${position})`;
}

/** The three tokens that matter most to the selected one, in words.
 * @param {Slot} slot @param {State} state @param {boolean} named */
function summary(slot, state, named) {
  const { token, role, scale } = state;
  const signed = slot.piece.item.b !== null;
  const values = along(slot, token, state);
  if (!values.length) return "";
  const size = (/** @type {number} */ at) => (signed ? Math.abs(values[at] ?? 0) : values[at] ?? 0);
  const known = [...values.keys()].filter((at) => values[at] !== undefined && !Number.isNaN(values[at]));
  const top = known.sort((a, b) => size(b) - size(a)).slice(0, 3)
    .map((at) => `${tokenName(slot.piece, at)} ${number(values[at] ?? 0, scale, signed)}`);
  const does = signed ? "differs most at" : role === "query" ? "attends most to" : "is attended to most by";
  const who = `${role === "query" ? "Query" : "Key"} ${tokenName(slot.piece, token)}`;
  const what = top.length ? `${does} ${top.join(", ")}` : "has nothing left";
  return `${named ? `${slot.piece.label}: ` : ""}${who} ${what}.`;
}

/** What is pointed at, in words. @param {Slot} slot @param {{query: number, key: number}} spot @param {State} state */
function readout({ part, piece, piece: { item } }, { query, key }, { causal, sinks, masked, scale }) {
  const where = `${piece.label}: query ${tokenName(piece, query)}`;
  if (causal && key > query) return `${where} cannot see the later token ${tokenName(piece, key)}`;
  const block = (/** @type {number} */ at) => (item.bins ? Math.floor((at * item.bins) / item.size) : at);
  const byte = part?.bytes[indexOf(item.bins || item.size, causal, block(query), block(key))];
  const text = masked && sinks.includes(key) ? "masked" : part && byte !== undefined
    ? `${item.bins ? "near " : ""}${number(valueOf(part, byte), scale, item.b !== null)}` : "not there yet";
  return `${where} → key ${tokenName(piece, key)}: ${text}`;
}
