// @ts-check
/// <reference path="../shared.js" />
// One row of an attention pattern: the present weight on each token, and the edited one in whole parts.

/**
 * @typedef {{tokens: string[], names: string[], weights: Float32Array, query: number, heading: string,
 *   suggested: number[]}} Data
 */

const DATA_TRAITS = ["tokens", "names", "weights", "suggested", "query", "heading"];
const LONGEST = 14; // letters of a token in the row
const LISTED = 8; // tokens that the status names
const HINT =
  "Click a token to attend to it, click again to leave it out. Shift+click or the keys + and - change its part, "
  + "the arrow keys move, Escape clears.";
/** @type {Record<string, number>} */
const STEPS = { "+": 1, "=": 1, "-": -1 };

/** The traits, or what does not fit together yet. @param {Model} model @returns {Data | string} */
function read(model) {
  const [tokens, weights, asked] = [model.get("tokens"), buffer(model.get("weights")), model.get("query")];
  const size = tokens.length;
  const query = asked === -1 ? size - 1 : asked;
  if (!size) return "No prompt to show.";
  if (query < 0 || query >= size) return `query is ${query}, there are ${size} tokens`;
  if (weights.byteLength && weights.byteLength !== 4 * size)
    return `weights has ${weights.byteLength} bytes, ${size} tokens need ${4 * size}`;
  for (const name of ["names", "parts", "suggested"]) {
    const entries = model.get(name);
    const found = entries.length;
    if (found && found !== size) return `${name} has ${found} entries, there are ${size} tokens`;
    if (name !== "names" && entries.some((/** @type {number} */ part, /** @type {number} */ at) => part && at > query))
      return `${name} has a part after the query, at ${query}`;
  }
  const [names, heading, suggested] = ["names", "heading", "suggested"].map((name) => model.get(name));
  return { tokens, names, weights: new Float32Array(weights), query, heading, suggested };
}

/** A token in a sentence, where a blank may stay a blank. @param {string} token */
function quote(token) {
  return `'${token.replace(/[\n\r\t]/g, (letter) => WHITE[letter])}'`;
}

/** @param {number} a @param {number} b @returns {number} */
function divisor(a, b) {
  return b ? divisor(b, a % b) : a;
}

/** A share in lowest terms. @param {number} part @param {number} total */
function fraction(part, total) {
  const common = divisor(part, total);
  return part % total ? `${part / common}/${total / common}` : String(part / total);
}

/** @param {number[]} numbers */
function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

/** One part, or none for a token that has any. @param {number} part */
function toggled(part) {
  return part ? 0 : 1;
}

/** The nearest token in the next line, down (1) or up (-1); the same one at the rim.
 * @param {DOMRect[]} boxes @param {number} from @param {number} step */
function inNextLine(boxes, from, step) {
  const start = boxes[from];
  const distance = (/** @type {number} */ at) => step * (boxes[at].bottom - start.bottom);
  const beyond = [...boxes.keys()].filter((at) => distance(at) > 2);
  const nearest = Math.min(...beyond.map(distance));
  const off = (/** @type {number} */ at) => Math.abs(boxes[at].left + boxes[at].right - start.left - start.right);
  const line = beyond.filter((at) => distance(at) < nearest + 2);
  return line.length ? line.reduce((best, at) => (off(at) < off(best) ? at : best)) : from;
}

/** Position of the token that an event is about, or -1. @param {EventTarget | null} target */
function positionOf(target) {
  const cell = target instanceof Element ? target.closest(".rw-token") : null;
  return cell instanceof HTMLElement ? Number(cell.dataset.position) : -1;
}

/** @param {Data} data @param {number} position */
function makeCell({ tokens, names, weights, query }, position) {
  const kind = position === query ? " rw-asks" : position > query ? " rw-later" : "";
  const attributes = { role: "checkbox", tabindex: "-1", "data-position": String(position) };
  const cell = make("div", `rw-token${kind}`, "", attributes);
  if (names[position]) cell.append(make("div", "rw-name", names[position]));
  cell.append(make("div", "rw-chip", short(tokens[position], LONGEST)));
  if (position > query) cell.setAttribute("aria-disabled", "true");
  if (weights.length) cell.append(make("div", "rw-bar rw-present"));
  cell.append(make("div", "rw-bar rw-edited"));
  cell.style.setProperty("--rw-present", `${(100 * Math.min(1, weights[position] || 0)).toFixed(2)}%`);
  return cell;
}

/** Only what occurs in the data. @param {Data} data */
function makeLegend({ tokens, weights, query }) {
  const box = make("div", "rw-legend", "", { "aria-hidden": "true" });
  const entries = [["rw-bar rw-edited", "edited weight"], ["rw-chip rw-asks", "query"]];
  if (weights.length) entries.unshift(["rw-bar rw-present", "present weight"]);
  if (query < tokens.length - 1) entries.push(["rw-chip rw-later", "after the query"]);
  for (const [name, text] of entries) {
    const entry = make("span", "rw-entry");
    entry.append(make("span", `${name} rw-swatch`), make("span", "", text));
    box.append(entry);
  }
  box.append(make("span", "rw-entry", "a full bar is 1"));
  return box;
}

class Row {
  // JupyterLab would otherwise take the arrow keys for itself.
  root = make("div", "rw-widget rw-attention-row", "", { "data-lm-suppress-shortcuts": "true" });
  title = make("div", "rw-title");
  strip = make("div", "rw-tokens", "", { role: "group" });
  status = make("div", "rw-status", "", { role: "status" });
  hint = make("div", "rw-hint", HINT);
  tip = make("div", "rw-tip", "", { role: "tooltip" });
  clear = make("button", "rw-button", "Clear", { type: "button" });
  reset = make("button", "rw-button", "Reset to named", { type: "button" });
  data = /** @type {Data | null} */ (null);
  cells = /** @type {HTMLElement[]} */ ([]);
  stop = 0; // the token that the Tab key reaches

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
  }

  /** Builds everything anew and keeps the keyboard where it was. */
  draw() {
    const data = read(this.model);
    const focused = this.focused();
    this.cells = [];
    this.data = typeof data === "string" ? null : data;
    if (typeof data === "string") return this.root.replaceChildren(make("div", "rw-problem", data));
    this.cells = data.tokens.map((_, position) => makeCell(data, position));
    this.strip.replaceChildren(...this.cells);
    this.strip.setAttribute("aria-label", data.heading || "Edited attention, token by token");
    Object.assign(this.title, { textContent: data.heading, hidden: !data.heading });
    const [buttons, foot] = [make("div", "rw-buttons"), make("div", "rw-foot")];
    buttons.append(this.clear, ...(sum(data.suggested) ? [this.reset] : []));
    foot.append(buttons, makeLegend(data));
    this.root.replaceChildren(this.title, this.strip, this.status, foot, this.hint, this.tip);
    this.moveStop(Math.min(focused < 0 ? this.stop : focused, data.query));
    this.showParts();
    if (focused >= 0) this.cells[this.stop].focus({ preventScroll: true });
  }

  /** Whether the parts belong to the tokens on the page. */
  fits() {
    return typeof read(this.model) !== "string" && this.cells.length === this.model.get("tokens").length;
  }

  /** The part of each token; all 0 without an edit. @returns {number[]} */
  parts() {
    const parts = this.model.get("parts");
    return parts.length ? parts : this.cells.map(() => 0);
  }

  /** Marks the attended tokens and says the edit in words. */
  showParts() {
    const [parts, suggested] = [this.parts(), this.data?.suggested ?? []];
    const total = sum(parts);
    this.cells.forEach((cell, position) => {
      cell.setAttribute("aria-checked", String(parts[position] > 0));
      cell.setAttribute("aria-label", this.describe(position, parts));
      cell.style.setProperty("--rw-edited", `${((100 * parts[position]) / (total || 1)).toFixed(2)}%`);
    });
    this.status.textContent = this.summary(parts);
    this.status.classList.toggle("rw-none", !total);
    // Disabled for real, a button would lose the keyboard.
    this.clear.setAttribute("aria-disabled", String(!total));
    this.reset.setAttribute("aria-disabled", String(suggested.every((part, position) => part === parts[position])));
    this.point();
  }

  /** @param {number} position */
  name(position) {
    const { tokens, names } = /** @type {Data} */ (this.data);
    return `${quote(tokens[position])} (${names[position] || position})`;
  }

  /** @param {number} position @param {number[]} parts */
  describe(position, parts) {
    const { weights, query } = /** @type {Data} */ (this.data);
    const words = [position === query ? `${this.name(position)}, the query` : this.name(position)];
    if (weights.length) words.push(`present weight ${weights[position].toFixed(3)}`);
    if (position > query) words.push("after the query and out of its reach");
    else if (sum(parts)) words.push(`edited weight ${fraction(parts[position], sum(parts))}`);
    return words.join(", ");
  }

  /** @param {number[]} parts */
  summary(parts) {
    const [total, attended] = [sum(parts), [...parts.keys()].filter((position) => parts[position])];
    if (!total) return "No edit: the heads' own attention";
    const listed = attended.slice(0, LISTED).map((at) => `${fraction(parts[at], total)} on ${this.name(at)}`);
    const more = attended.slice(LISTED);
    if (more.length) listed.push(`${fraction(sum(more.map((at) => parts[at])), total)} on ${more.length} more`);
    return listed.join(", ");
  }

  /** @param {number} position */
  moveStop(position) {
    if (this.cells[this.stop]) this.cells[this.stop].tabIndex = -1;
    this.stop = position;
    this.cells[position].tabIndex = 0;
  }

  focused() {
    const { activeElement } = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    return this.root.contains(activeElement) ? positionOf(activeElement) : -1;
  }

  /** The token under the pointer, or else the one with the keyboard, or -1. */
  pointed() {
    const [hovered, keyed] = [":hover", ":focus-visible"].map((is) => this.cells.findIndex((cell) => cell.matches(is)));
    return hovered < 0 ? keyed : hovered;
  }

  /** Says the numbers of a token below it; -1 hides them. */
  point(position = this.pointed()) {
    const { tip, root, cells } = this;
    tip.hidden = position < 0 || !cells.length;
    if (tip.hidden) return;
    tip.textContent = this.describe(position, this.parts());
    tip.style.left = "0";
    const [cell, box] = [cells[position].getBoundingClientRect(), root.getBoundingClientRect()];
    tip.style.left = `${Math.max(0, Math.min(cell.left - box.left, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${cell.bottom - box.top + 6}px`;
  }

  /** @param {number[]} parts */
  send(parts) {
    this.model.set("parts", sum(parts) ? [...parts] : []);
    this.model.save_changes();
    this.showParts();
  }

  /** Gives a token another part, if the query can read it.
   * @param {number} position @param {(part: number) => number} next */
  change(position, next) {
    if (!this.data || position > this.data.query) return;
    this.send(this.parts().map((part, at) => (at === position ? Math.max(0, next(part)) : part)));
  }

  /** The token that a key leads to, or -1 when the key moves nothing. @param {number} from @param {string} key */
  next(from, key) {
    const last = this.cells.length - 1;
    /** @type {Record<string, number>} */
    const moves = { ArrowLeft: Math.max(0, from - 1), ArrowRight: Math.min(last, from + 1), Home: 0, End: last };
    if (key !== "ArrowUp" && key !== "ArrowDown") return moves[key] ?? -1;
    return inNextLine(this.cells.map((cell) => cell.getBoundingClientRect()), from, key === "ArrowUp" ? -1 : 1);
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const { key } = event;
    const position = positionOf(event.target);
    if (!this.data || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = position < 0 ? -1 : this.next(position, key);
    if (key === "Escape") this.send([]);
    else if (next >= 0) this.cells[next].focus();
    else if (position >= 0 && key in STEPS) this.change(position, (part) => part + STEPS[key]);
    else if (position < 0 || (key !== "Enter" && key !== " ")) return;
    else if (!event.repeat) this.change(position, toggled);
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {MouseEvent} event */
  click({ target, shiftKey }) {
    const position = positionOf(target);
    if (position >= 0) this.change(position, shiftKey ? (part) => part + 1 : toggled);
  }

  listen() {
    const { root, strip } = this;
    strip.addEventListener("click", (event) => this.click(event));
    for (const move of ["pointerover", "pointerleave"]) strip.addEventListener(move, () => this.point());
    strip.addEventListener("focusout", () => this.point(-1));
    strip.addEventListener("focusin", ({ target }) => {
      this.moveStop(positionOf(target));
      this.point(positionOf(target));
    });
    root.addEventListener("keydown", (event) => this.press(event));
    this.clear.addEventListener("click", () => this.send([]));
    this.reset.addEventListener("click", () => this.data && this.send(this.data.suggested));
  }
}

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const row = new Row(model);
  const redraw = together(() => row.draw());
  const observer = new ResizeObserver(() => row.point());
  const update = () => (row.fits() ? row.showParts() : redraw());
  el.append(row.root);
  row.listen();
  row.draw();
  for (const name of DATA_TRAITS) model.on(`change:${name}`, redraw);
  model.on("change:parts", update);
  observer.observe(row.root);
  return () => {
    observer.disconnect();
    redraw.stop();
    for (const name of DATA_TRAITS) model.off(`change:${name}`, redraw);
    model.off("change:parts", update);
    row.root.remove();
  };
}

export default { render };
