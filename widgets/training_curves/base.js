// @ts-check
/// <reference path="../shared.js" />
// Small pieces that the other files of this widget share, and the traits as lines. The files are joined to one module.

/**
 * @typedef {{role: string, panel: number, owner: number, name: string, x: Float64Array, y: Float32Array,
 *   low: Float32Array | null, high: Float32Array | null, counts: Uint32Array | null}} Line
 * @typedef {{title: string, unit: string, kind: string}} PanelData
 * @typedef {{lines: Line[], panels: PanelData[], tasks: string[], colours: string[]}} Data
 */

const BYTES = { x: 8, y: 4, low: 4, high: 4, counts: 4 }; // of a point
const OF_LINES = ["lengths", "roles", "panels", "owners", "names"];
const DATA_TRAITS = [...Object.keys(BYTES), ...OF_LINES, "titles", "units", "kinds", "tasks", "colours"];
const SAID = { heading: "rw-title", note: "rw-note", status: "rw-status" }; // traits that are shown as they are

/** Writes only what differs, so that what is unchanged is not laid out or said again.
 * @param {Element} element @param {string} text */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The traits, or what does not fit together yet. @param {Model} model @returns {Data | string} */
function read(model) {
  const { lengths, roles, panels, owners, names } = traits(model, OF_LINES);
  const { titles, units, kinds, tasks, colours } = traits(model, ["titles", "units", "kinds", "tasks", "colours"]);
  const points = lengths.reduce((/** @type {number} */ sum, /** @type {number} */ size) => sum + size, 0);
  /** @type {Record<string, ArrayBuffer>} */
  const raw = {};
  for (const [name, width] of Object.entries(BYTES)) {
    raw[name] = buffer(model.get(name));
    const found = raw[name].byteLength;
    if (found !== width * points && (found > 0 || name === "x" || name === "y"))
      return `${name} has ${found} bytes, ${points} points need ${width * points}`;
  }
  if ([roles, panels, owners, names].some((list) => list.length !== lengths.length)
    || [units, kinds].some((list) => list.length !== titles.length) || colours.length !== tasks.length
    || Math.max(-1, ...panels) >= titles.length || Math.max(-1, ...owners) >= tasks.length)
    return "the lists of lines, panels and tasks do not fit together";
  const cut = cutter(raw);
  const lines = lengths.map((/** @type {number} */ size, /** @type {number} */ at) =>
    ({ role: roles[at], panel: panels[at], owner: owners[at], name: names[at], ...cut(size) }));
  return { lines, tasks, colours, panels: titles.map((/** @type {string} */ title, /** @type {number} */ at) =>
    ({ title, unit: units[at], kind: kinds[at] })) };
}

/** @param {Model} model @param {string[]} names @returns {Record<string, any>} */
function traits(model, names) {
  return Object.fromEntries(names.map((name) => [name, model.get(name)]));
}

/** A function that cuts the next line's points off. @param {Record<string, ArrayBuffer>} raw */
function cutter(raw) {
  let from = 0;
  /** @type {(name: string, size: number) => Float32Array | null} */
  const ends = (name, size) => {
    const found = raw[name].byteLength ? new Float32Array(raw[name], 4 * from, size) : new Float32Array();
    return found.some(Number.isFinite) ? found : null;
  };
  return (/** @type {number} */ size) => {
    const counts = raw.counts.byteLength ? new Uint32Array(raw.counts, 4 * from, size) : null;
    const found = { x: new Float64Array(raw.x, 8 * from, size), y: new Float32Array(raw.y, 4 * from, size),
      low: ends("low", size), high: ends("high", size), counts };
    from += size;
    return found;
  };
}
