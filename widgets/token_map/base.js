// @ts-check
/// <reference path="../shared.js" />
// Words and small pieces that the other files of this widget share. They are joined to one module.

/**
 * @typedef {{count: number, x: Float32Array, y: Float32Array, colourings: string[], codes: Uint16Array[],
 *   names: string[][], colours: string[][], by: number, texts: string[], textCodes: Uint32Array, span: number,
 *   start: number, axes: string[], heading: string, note: string}} Data  the traits, unpacked; `by` is the colouring
 */

const DATA_TRAITS = ["points", "codes", "colourings", "names", "colours", "colour_by", "texts", "text_codes", "span",
  "start", "axes", "heading", "note"];
const HINT = "Click the map, then turn the wheel to zoom. Shift+drag always draws a lasso, Ctrl adds to the "
  + "selection, Alt takes away. Keys: arrows move, + and − zoom, 0 shows all, Escape clears.";
const NO_WEBGL = "The map cannot be drawn, as this browser gives no WebGL; switch on its hardware or software "
  + "rendering. The legend still selects whole categories.";
const LOST = "The browser took the graphics memory of this map away; reload the page to draw it again.";

/** @param {number} value */
function number(value) {
  return value.toLocaleString("en-US");
}

/** The traits, or what does not fit together yet. @param {Model} model @returns {Data | string} */
function read(model) {
  const [points, codes] = [buffer(model.get("points")), buffer(model.get("codes"))];
  const [colourings, names, colours] = ["colourings", "names", "colours"].map((name) => model.get(name));
  const count = points.byteLength / 8;
  const by = colourings.indexOf(model.get("colour_by"));
  if (!count) return "No tokens to show.";
  if (!Number.isInteger(count)) return `points has ${points.byteLength} bytes, which are no pairs of numbers`;
  if (codes.byteLength !== 2 * count * colourings.length)
    return `codes has ${codes.byteLength} bytes, ${count} points need ${2 * count * colourings.length}`;
  if (by < 0) return `colour_by is ${model.get("colour_by")}, there are ${colourings.join(", ")}`;
  if (names.length !== colourings.length || colours.length !== colourings.length)
    return `names and colours are of ${names.length} and ${colours.length} colourings, there are ${colourings.length}`;
  const textCodes = new Uint32Array(buffer(model.get("text_codes")));
  if (textCodes.length && textCodes.length !== count)
    return `text_codes has ${textCodes.length} numbers, there are ${count} points`;
  const [texts, span, start, axes, heading, note] = ["texts", "span", "start", "axes", "heading", "note"]
    .map((name) => model.get(name));
  return { count, x: new Float32Array(points, 0, count), y: new Float32Array(points, 4 * count), colourings, names,
    colours, by, codes: colourings.map((/** @type {string} */ _, /** @type {number} */ at) =>
      new Uint16Array(codes, 2 * count * at, count)), texts, textCodes, span, start, axes, heading, note };
}

/** Numbers of the points whose category is among those wanted.
 * @param {Uint16Array} codes @param {(category: number) => boolean} wanted */
function having(codes, wanted) {
  const found = new Uint32Array(codes.length);
  let size = 0;
  for (let at = 0; at < codes.length; at += 1) if (wanted(codes[at])) found[size++] = at;
  return found.slice(0, size);
}

/** How many points each category has. @param {Uint16Array} codes @param {number} known @param {Uint32Array} [among] */
function tally(codes, known, among) {
  const counts = new Uint32Array(known);
  if (among) for (const at of among) counts[codes[at]] += 1;
  else for (const code of codes) counts[code] += 1;
  return counts;
}

/** The least and the greatest. @param {Float32Array | number[]} values */
function endsOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** What a selection becomes by what was taken: itself, the two together, or what is left of it.
 * @param {Uint32Array} before @param {ArrayLike<number>} taken @param {string} how 'add', 'remove' or 'replace' */
function combined(before, taken, how) {
  const set = new Set(how === "replace" ? [] : before);
  for (let at = 0; at < taken.length; at += 1) {
    if (how === "remove") set.delete(taken[at]);
    else set.add(taken[at]);
  }
  return Uint32Array.from(set).sort();
}

/** What the modifier keys of an event ask for. @param {MouseEvent | KeyboardEvent} event */
function asked(event) {
  return event.altKey ? "remove" : event.ctrlKey || event.metaKey ? "add" : "replace";
}
