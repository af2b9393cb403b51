// @ts-check
/// <reference path="../shared.js" />
// Words, numbers and small pieces that the other files of this widget share. They are joined to one module.

/**
 * @typedef {{a: number[], b: number[] | null, scale: string, masked: number[], bins: number, size: number}} Item
 *   What Python is asked for: a head as [side, layer, head], or the difference of two.
 * @typedef {{bytes: Uint8Array, low: number, high: number, rooted: boolean, error?: string}} Part  its bytes
 * @typedef {{query: number, key: number, span: number}} Frame  the part of a map that is drawn, in tokens
 * @typedef {{label: string, tokens: string[], item: Item}} Piece  one map of a head, as the comparison wants it
 * @typedef {{type: string, x: number, y: number, w: number, h: number, fill?: string, stroke?: string, line?: number,
 *   dash?: number, text?: string, size?: number, font?: string, bold?: boolean, mono?: boolean, turn?: boolean,
 *   canvas?: HTMLCanvasElement}} Mark  one thing on screen, in pixels; of a text x and y are its start on the line
 * @typedef {{plate: Plate, piece: Piece, part: Part | undefined, labels: HTMLElement, name: HTMLElement,
 *   left: number}} Slot  a place for a map; `left` is where it starts, right of its labels
 * @typedef {{pair: number[], cell: HTMLElement, visible: boolean, slots: Slot[]}} Entry  a head and its maps
 * @typedef {{entry: number, slot: number, query: number, key: number}} Spot  a cell of a map, -1 for none
 * @typedef {Record<string, any>} State  the traits by name
 */

const TRAITS = ["tokens", "tokens_b", "layers", "heads", "shown", "selected", "scale", "has_scores", "sinks", "masked",
  "compare", "versus", "names", "causal", "title"];
const [CHUNK, ROOM, PATIENCE, TRIES] = [1 << 20, 64 << 20, 6000, 3]; // bytes an answer, bytes kept, milliseconds, times
const BINS = [64, 128, 256];
const NOTHING = 255; // the byte of a pair without a value, where bytes count evenly
const MIDDLE = 127; // and the one of no difference
const [LABELLED, LARGEST, SMALLEST, TOP, EDGE, CLOSEST] = [11, 26, 400, 20, 20, 8];
const [LETTER, LONGEST, WINDOW, GAP] = [6.7, 14, 96, 16]; // pixels, letters, tokens of the strip at once, pixels
const FONT = 'Helvetica, Arial, "Liberation Sans", sans-serif';
const MONO = 'Courier, "Courier New", "Liberation Mono", monospace';
const SCALES = { probability: "attention probability", log: "log probability", score: "score before softmax" };
const HINT = "Click a row, a column or a token to select it; the arrow keys move it.";
const HINT_GRID = "Click a map to make it large, or use the arrow keys and Enter; click a token to select it.";

/** Room a label needs; letters of wide scripts count twice. @param {string} label */
function room(label) {
  return [...label].reduce((sum, letter) => sum + (letter > "\u2e80" ? 2 : 1) * LETTER, 0);
}

/** @param {number[]} pair */
function headName([layer, head]) {
  return `L${layer}H${head}`;
}

/** @param {number} value @param {string} scale @param {boolean} [signed] */
function number(value, scale, signed = false) {
  if (Number.isNaN(value)) return "none";
  if (scale === "log" && !signed && value <= -12) return "≤ −12";
  const digits = scale === "probability" && Math.abs(value) > 0 && Math.abs(value) < 0.095 ? 3 : 2;
  return (signed && value > 0 ? "+" : "") + value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
}

/** The heads that a text like "L3 L5H2" names, [] for all, or null where it names none.
 * @param {string} text @param {number[]} layers @param {number[]} heads */
function parseHeads(text, layers, heads) {
  const found = /** @type {number[][]} */ ([]);
  for (const word of text.trim().replace(/^all$/i, "").split(/[\s,;]+/).filter(Boolean)) {
    const match = /^L?(\d+)(?:[H.](\d+))?$/i.exec(word);
    const [layer, head] = match ? [Number(match[1]), match[2] === undefined ? -1 : Number(match[2])] : [-1, -1];
    if (!layers.includes(layer) || (head >= 0 && !heads.includes(head))) return null;
    found.push(...(head < 0 ? heads : [head]).map((each) => [layer, each]));
  }
  return found.filter((pair, at) => found.findIndex((other) => `${other}` === `${pair}`) === at);
}

/** Value that a byte stands for, NaN for none. @param {Part} part @param {number} byte */
function valueOf({ low, high, rooted }, byte) {
  if (rooted) return (byte / 255) ** 2;
  return byte === NOTHING ? NaN : low + (byte / 254) * (high - low);
}

/** Where a pair's byte is. @param {number} size @param {boolean} causal @param {number} query @param {number} key */
function indexOf(size, causal, query, key) {
  return causal ? (query * (query + 1)) / 2 + key : query * size + key;
}

/** @param {HTMLSelectElement} select @param {string[][]} options value and text @param {string} value */
function fill(select, options, value) {
  const known = JSON.stringify(options);
  if (select.dataset.options !== known)
    select.replaceChildren(...options.map(([each, text]) => make("option", "", text, { value: each })));
  [select.dataset.options, select.value] = [known, value];
}

/** Heads as a short text, whole layers by their name. @param {number[][]} shown @param {number[]} heads */
function shorten(shown, heads) {
  const whole = (/** @type {number} */ layer) =>
    heads.every((head) => shown.some((pair) => pair[0] === layer && pair[1] === head));
  return [...new Set(shown.map((pair) => (whole(pair[0]) ? `L${pair[0]}` : headName(pair))))].join(" ");
}

/** The traits; what does not fit the others, as a host may send it, counts as not chosen. @param {Model} model */
function read(model) {
  const state = Object.fromEntries([...TRAITS, "token", "role"].map((name) => [name, model.get(name)]));
  const { layers, heads } = state;
  const known = (/** @type {number[]} */ [layer, head]) => layers.includes(layer) && heads.includes(head);
  state.shown = state.shown.filter(known);
  for (const name of ["selected", "versus"]) if (!known(state[name])) state[name] = [];
  if (layers.length * heads.length === 1) state.selected = [layers[0], heads[0]];
  if (!state.has_scores && state.scale === "score") state.scale = "probability";
  return state;
}
