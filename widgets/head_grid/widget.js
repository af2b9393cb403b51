// @ts-check
/// <reference path="../shared.js" />
// Heat maps of one number a head, side by side, with one colour range and one selected head for all of them.

/**
 * @typedef {{panels: number, rows: number, heads: number, values: Float32Array, low: Float32Array, high: Float32Array,
 *   marks: Uint8Array, layers: number[], titles: string[], signed: boolean, limit: number, quantity: string,
 *   markNames: string[]}} Data
 */

const DATA_TRAITS = [
  "values", "low", "high", "marks", "mark_names", "shape", "titles", "layers", "signed", "limit", "quantity",
];
const MARK_KINDS = ["", "top", "shared"]; // what the style sheet calls them
// In pixels: cells, a whole panel, and what a panel needs beside its cells.
const [SMALLEST, COMFORTABLE, LARGEST, TALLEST, BESIDE] = [10, 13, 34, 720, 76];

/** The traits as typed arrays, or what does not fit together yet. @param {Model} model @returns {Data | string} */
function read(model) {
  const [panels, rows, heads] = model.get("shape");
  const cells = panels * rows * heads;
  /** @type {Record<string, ArrayBuffer>} */
  const raw = {};
  for (const [name, width] of Object.entries({ values: 4, low: 4, high: 4, marks: 1 })) {
    raw[name] = buffer(model.get(name));
    const found = raw[name].byteLength;
    if (found !== width * cells && (name === "values" || found > 0))
      return `${name} has ${found} bytes, the shape [${[panels, rows, heads]}] needs ${width * cells}`;
  }
  const values = new Float32Array(raw.values);
  const layers = model.get("layers");
  return {
    panels, rows, heads, values,
    low: new Float32Array(raw.low), high: new Float32Array(raw.high), marks: new Uint8Array(raw.marks),
    layers: layers.length === rows ? layers : Array.from({ length: rows }, (_, row) => row),
    markNames: model.get("mark_names"), titles: model.get("titles"), signed: model.get("signed"), quantity: model.get("quantity"),
    limit: model.get("limit") || values.filter(Number.isFinite).reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1,
  };
}

/** A number with the digits that the colour range calls for. @param {number} value @param {number} limit */
function show(value, limit) {
  if (limit < 1e-6 || limit >= 1e6) return value.toExponential(1);
  const digits = limit >= 100 ? 0 : limit >= 10 ? 1 : limit >= 0.1 ? 2 : 1 - Math.floor(Math.log10(limit));
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

/** @param {Data} data @param {number} index @param {"label" | "text"} form */
function describe(data, index, form) {
  const { values, low, high, limit } = data;
  if (Number.isNaN(values[index])) return "no value";
  const mark = data.marks[index] ? data.markNames[data.marks[index] - 1] : "";
  let text = show(values[index], limit);
  if (low.length && high.length && !Number.isNaN(low[index] + high[index])) {
    const [from, to] = [show(low[index], limit), show(high[index], limit)];
    text += form === "label" ? `, interval ${from} to ${to}` : ` [${from}, ${to}]`;
  }
  return mark ? `${text}, ${mark}` : text;
}

/** @param {Data} data @param {number} index */
function headName({ layers, rows, heads }, index) {
  return `L${layers[Math.floor(index / heads) % rows]}H${index % heads}`;
}

/** @param {Data} data @param {number} index */
function makeCell(data, index) {
  const value = data.values[index];
  const kind = Number.isNaN(value) ? " rw-empty" : value < 0 && data.signed ? " rw-below" : "";
  const label = `${headName(data, index)}, ${describe(data, index, "label")}`;
  const attributes = { role: "gridcell", tabindex: "-1", "aria-selected": "false", "aria-label": label };
  const cell = make("div", `rw-cell${kind}`, "", { ...attributes, "data-index": String(index) });
  const share = Math.min(1, Math.max(0, (data.signed ? Math.abs(value) : value) / data.limit));
  cell.style.setProperty("--rw-share", `${(100 * share || 0).toFixed(1)}%`);
  if (data.marks[index]) cell.dataset.mark = MARK_KINDS[data.marks[index]];
  return cell;
}

/** The range of the colours; an end that values pass says so. @param {Data} data */
function makeColourBar({ values, limit, signed, quantity }) {
  const [box, ends] = [make("div", "rw-scale"), make("div", "rw-ends")];
  const under = values.some((value) => value < (signed ? -limit : 0)) ? "≤ " : "";
  const over = values.some((value) => value > limit) ? "≥ " : "";
  const numbers = signed ? [under + show(-limit, limit), "0"] : [`${under}0`];
  ends.append(...[...numbers, over + show(limit, limit)].map((text) => make("span", "", text)));
  box.append(make("div", "rw-quantity", quantity), make("div", signed ? "rw-bar rw-signed" : "rw-bar"), ends);
  return box;
}

/** Only what occurs in the data. @param {Data} data */
function makeLegend({ marks, markNames, values }) {
  const entries = [1, 2].filter((mark) => marks.includes(mark)).map((mark) => [MARK_KINDS[mark], markNames[mark - 1]]);
  if (values.some(Number.isNaN)) entries.push(["", "no value"]);
  const box = make("div", "rw-legend");
  for (const [mark, text] of entries) {
    const entry = make("span", "rw-entry");
    const swatch = make("span", mark ? "rw-swatch" : "rw-swatch rw-empty", "", mark ? { "data-mark": mark } : {});
    entry.append(swatch, make("span", "", text));
    box.append(entry);
  }
  return box;
}

/** The cell that a key leads to, or -1 when the key is not ours.
 * @param {Data} data @param {number} index @param {KeyboardEvent} event */
function neighbour(data, index, event) {
  const { heads, rows } = data;
  const [head, row] = [index % heads, Math.floor(index / heads) % rows];
  /** @type {Record<string, number>} */
  const moves = {
    ArrowLeft: index - (head > 0 ? 1 : 0), ArrowRight: index + (head < heads - 1 ? 1 : 0),
    ArrowUp: index + (row < rows - 1 ? heads : 0), ArrowDown: index - (row > 0 ? heads : 0),
    Home: index - head, End: index - head + heads - 1,
  };
  return event.ctrlKey || event.metaKey || event.altKey ? -1 : moves[event.key] ?? -1;
}

/** @param {EventTarget | null} target */
function cellIndex(target) {
  const cell = target instanceof Element ? target.closest(".rw-cell") : null;
  return cell instanceof HTMLElement ? Number(cell.dataset.index) : -1;
}

/** Number of a layer or a head beside the cells.
 * @param {string} name @param {string} role @param {number} number @param {number} order */
function makeNumber(name, role, number, order) {
  const attributes = { role, "aria-label": `${name} ${number}`, "data-order": String(order) };
  return make("div", `rw-${name}`, String(number), attributes);
}

/** @param {HTMLElement[]} members */
function makeRow(members) {
  const row = make("div", "rw-row", "", { role: "row" });
  row.append(...members);
  return row;
}

/** What each panel says about one head. @param {Data} data @param {number} index */
function makeLines(data, index) {
  const each = data.rows * data.heads;
  return Array.from({ length: data.panels }, (_, panel) => {
    const line = make("span", panel === Math.floor(index / each) ? "rw-line rw-here" : "rw-line", data.titles[panel]);
    line.append(data.titles[panel] ? ": " : "", describe(data, panel * each + (index % each), "text"));
    return line;
  });
}

class Grid {
  // JupyterLab would otherwise take the arrow keys for itself.
  root = make("div", "rw-widget rw-head-grid", "", { "data-lm-suppress-shortcuts": "true" });
  chosen = make("div", "rw-chosen", "", { "aria-live": "polite" });
  tip = make("div", "rw-tip", "", { role: "tooltip" });
  data = /** @type {Data} */ ({});
  cells = /** @type {HTMLElement[]} */ ([]);
  stops = /** @type {number[]} */ ([]); // the cell of each panel that the Tab key reaches

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
  }

  /** Builds everything anew and keeps the keyboard where it was. */
  draw() {
    const data = read(this.model);
    const focused = this.focusedIndex();
    this.cells = [];
    if (typeof data === "string") return this.root.replaceChildren(make("div", "rw-problem", data));
    Object.assign(this, { data, stops: Array(data.panels).fill(-1) });
    const [panels, foot] = [make("div", "rw-panels"), make("div", "rw-foot")];
    for (let panel = 0; panel < data.panels; panel++) panels.append(this.makePanel(panel));
    foot.append(makeColourBar(data), makeLegend(data));
    this.tip.hidden = true;
    this.root.replaceChildren(panels, foot, this.chosen, this.tip);
    this.fit();
    this.showSelected();
    if (focused >= 0) this.cells[Math.min(focused, this.cells.length - 1)]?.focus({ preventScroll: true });
  }

  /** @param {number} panel */
  makePanel(panel) {
    const { titles, quantity } = this.data;
    const title = titles[panel] ?? "";
    const label = [title, quantity, "by layer and head"].filter(Boolean).join(", ");
    const grid = make("div", "rw-grid", "", { role: "grid", "aria-label": label });
    grid.append(...this.makeRows(panel));
    const axes = ["layer", "head"].map((axis) => make("div", `rw-${axis}-axis`, axis, { "aria-hidden": "true" }));
    const box = make("div", "rw-panel");
    box.append(make("div", "rw-title", title), axes[0], grid, axes[1]);
    return box;
  }

  /** The rows of one panel, the highest layer first, and the head numbers. @param {number} panel */
  makeRows(panel) {
    const { data, cells } = this;
    const heads = Array.from({ length: data.heads }, (_, head) => head);
    const rows = data.layers.map((layer, row) => {
      const first = (panel * data.rows + row) * data.heads;
      for (const head of heads) cells[first + head] = makeCell(data, first + head);
      return makeRow([makeNumber("layer", "rowheader", layer, row), ...cells.slice(first, first + data.heads)]);
    });
    const numbers = heads.map((head) => makeNumber("head", "columnheader", head, head));
    return [...rows.reverse(), makeRow([make("div", "rw-layer", "", { role: "presentation" }), ...numbers])];
  }

  /** Sizes the cells for the width at hand: as few lines of panels, evenly filled, as leave the cells comfortable. */
  fit() {
    if (!this.cells.length) return;
    const { panels, rows, heads } = this.data;
    const width = this.root.clientWidth || 640;
    let size = 0;
    for (let lines = 1; lines <= panels && size < COMFORTABLE; lines++)
      size = Math.floor((width / Math.ceil(panels / lines) - BESIDE) / heads) - 1;
    size = Math.max(SMALLEST, Math.min(size, LARGEST, Math.max(12, Math.floor(TALLEST / rows))));
    this.root.style.setProperty("--rw-cell", `${size}px`);
    this.thin("columnheader", Math.ceil(17 / (size + 1)));
    this.thin("rowheader", Math.ceil(12 / (size + 1)));
  }

  /** Leaves every step-th number visible; assistive tools read all. @param {string} role @param {number} step */
  thin(role, step) {
    for (const name of /** @type {NodeListOf<HTMLElement>} */ (this.root.querySelectorAll(`[role=${role}]`)))
      name.classList.toggle("rw-off", Number(name.dataset.order) % step !== 0);
  }

  /** Outlines the selected head in every panel and says it in words. */
  showSelected() {
    if (!this.cells.length) return;
    const { data, cells, chosen } = this;
    const [layer, head] = this.model.get("selected");
    const row = data.layers.indexOf(layer);
    const index = row >= 0 && head < data.heads ? row * data.heads + head : -1;
    for (const cell of this.root.querySelectorAll("[aria-selected=true]")) cell.setAttribute("aria-selected", "false");
    chosen.classList.toggle("rw-hint", index < 0);
    chosen.textContent = "Click a head to select it, or use the arrow keys and Enter; Escape clears.";
    if (index >= 0) chosen.replaceChildren(make("strong", "", headName(data, index)), ...makeLines(data, index));
    for (let panel = 0; panel < data.panels; panel++) {
      const cell = panel * data.rows * data.heads + Math.max(index, 0);
      if (index >= 0) cells[cell].setAttribute("aria-selected", "true");
      if (index >= 0 || this.stops[panel] < 0) this.moveStop(cell);
    }
  }

  /** @param {number} index */
  moveStop(index) {
    const panel = Math.floor(index / (this.data.rows * this.data.heads));
    if (this.stops[panel] >= 0) this.cells[this.stops[panel]].tabIndex = -1;
    this.stops[panel] = index;
    this.cells[index].tabIndex = 0;
  }

  focusedIndex() {
    const { activeElement } = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    return this.root.contains(activeElement) ? cellIndex(activeElement) : -1;
  }

  /** Shows the tooltip of a cell on whichever side has room; -1 hides it. @param {number} index */
  point(index) {
    const { tip, root, cells, data } = this;
    tip.hidden = index < 0 || !cells.length;
    if (tip.hidden) return;
    tip.replaceChildren(make("strong", "", headName(data, index)), ...makeLines(data, index));
    const [cell, box] = [cells[index].getBoundingClientRect(), root.getBoundingClientRect()];
    const [right, left] = [cell.right - box.left + 8, cell.left - box.left - tip.offsetWidth - 8];
    tip.style.left = `${Math.max(0, right + tip.offsetWidth <= box.width ? right : left)}px`;
    tip.style.top = `${Math.max(0, Math.min(cell.top - box.top - 4, box.height - tip.offsetHeight))}px`;
  }

  /** @param {number} index the head in any panel, or -1 to clear */
  select(index) {
    const { rows, heads, layers } = this.data;
    this.model.set("selected", index < 0 ? [] : [layers[Math.floor(index / heads) % rows], index % heads]);
    this.model.save_changes();
    this.showSelected();
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const index = cellIndex(event.target);
    if (index < 0) return;
    const next = neighbour(this.data, index, event);
    if (next >= 0) this.cells[next].focus();
    else if (event.key === "Enter" || event.key === " ") this.select(index);
    else if (event.key === "Escape") this.select(-1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  listen() {
    const { root } = this;
    root.addEventListener("click", ({ target }) => cellIndex(target) >= 0 && this.select(cellIndex(target)));
    root.addEventListener("keydown", (event) => this.press(event));
    root.addEventListener("pointerover", ({ target }) => this.point(cellIndex(target)));
    root.addEventListener("pointerleave", () => this.point(this.focusedIndex()));
    root.addEventListener("focusout", () => this.point(-1));
    root.addEventListener("focusin", ({ target }) => {
      const index = cellIndex(target);
      if (index >= 0) this.moveStop(index);
      this.point(index);
    });
  }
}

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const grid = new Grid(model);
  const redraw = together(() => grid.draw());
  const reselect = () => grid.showSelected();
  const observer = new ResizeObserver(() => grid.fit());
  el.append(grid.root);
  grid.listen();
  grid.draw();
  for (const name of DATA_TRAITS) model.on(`change:${name}`, redraw);
  model.on("change:selected", reselect);
  observer.observe(grid.root);
  return () => {
    observer.disconnect();
    redraw.stop();
    for (const name of DATA_TRAITS) model.off(`change:${name}`, redraw);
    model.off("change:selected", reselect);
    grid.root.remove();
  };
}

export default { render };
