// @ts-check
/// <reference path="words.js" />
// A task x task matrix: the number of every pair in its cell, in colour only where it lies outside the noise.

const DATA_TRAITS = [
  "values", "low", "high", "clear", "diagonal", "diagonal_name", "names", "details", "detail_values", "signed",
  "limit", "quantity", "absent", "title", "note",
];
// In pixels: cells under names that lie flat and under slanted ones, and how high those may rise.
const FLAT = { least: 76, most: 200 };
const SLANTED = { least: 48, most: 76 };
const [LONGEST, HIGHEST, GAP] = [260, 150, 2];

/** @param {Data} data @param {number} index */
function makeCell(data, index) {
  const { values, clear, signed, limit, count, absent } = data;
  const [value, own] = [values[index], isOwn(count, index)];
  const noisy = clear.length && !clear[index];
  const shade = noisy ? "rw-noise" : value < 0 && signed ? "rw-below" : "";
  const text = written(data, index);
  const kind = `${own ? "rw-own " : ""}${text === absent ? "rw-empty" : own ? "" : shade}`;
  const label = [pairName(data, index), describe(data, index)].filter(Boolean).join(", ");
  const attributes = { role: "gridcell", tabindex: "-1", "aria-label": label, "data-index": String(index) };
  const cell = make("div", `rw-cell ${kind}`, text, attributes);
  if (!own) cell.setAttribute("aria-selected", "false");
  const share = Math.min(1, Math.max(0, (signed ? Math.abs(value) : value) / limit));
  cell.style.setProperty("--rw-share", `${(100 * share || 0).toFixed(1)}%`);
  return cell;
}

/** The range of the colours; an end that values pass says so. @param {Data} data */
function makeColourBar({ values, limit, signed, quantity, count }) {
  const [box, ends] = [make("div", "rw-scale"), make("div", "rw-ends")];
  const shown = values.filter((_, index) => !isOwn(count, index));
  const under = shown.some((value) => value < (signed ? -limit : 0)) ? "≤ " : "";
  const over = shown.some((value) => value > limit) ? "≥ " : "";
  const numbers = signed ? [under + show(-limit, limit), "0"] : [`${under}0`];
  ends.append(...[...numbers, over + show(limit, limit)].map((text) => make("span", "", text)));
  box.append(make("div", "rw-quantity", quantity), make("div", signed ? "rw-bar rw-signed" : "rw-bar"), ends);
  return box;
}

/** Only what occurs in the data. @param {Data} data */
function makeLegend({ values, clear, diagonal, diagonalName, count }) {
  const entries = [];
  if (clear.some((flag, index) => !flag && !isOwn(count, index) && !Number.isNaN(values[index])))
    entries.push(["rw-swatch rw-noise", "", "inside the noise"]);
  if (diagonalName && diagonal.some((value) => !Number.isNaN(value)))
    entries.push(["rw-swatch rw-own", "( )", `in brackets: ${diagonalName}`]);
  const box = make("div", "rw-legend");
  for (const [name, sign, text] of entries) {
    const entry = make("span", "rw-entry");
    entry.append(make("span", name, sign, { "aria-hidden": "true" }), make("span", "", text));
    box.append(entry);
  }
  return box;
}

/** The cell that a key leads to, or -1 when the key is not ours.
 * @param {number} count @param {number} index @param {KeyboardEvent} event */
function neighbour(count, index, event) {
  const [row, column] = [Math.floor(index / count), index % count];
  /** @type {Record<string, number>} */
  const moves = {
    ArrowLeft: index - (column > 0 ? 1 : 0), ArrowRight: index + (column < count - 1 ? 1 : 0),
    ArrowUp: index - (row > 0 ? count : 0), ArrowDown: index + (row < count - 1 ? count : 0),
    Home: index - column, End: index - column + count - 1,
  };
  return event.ctrlKey || event.metaKey || event.altKey ? -1 : moves[event.key] ?? -1;
}

/** @param {EventTarget | null} target */
function cellIndex(target) {
  const cell = target instanceof Element ? target.closest(".rw-cell") : null;
  return cell instanceof HTMLElement ? Number(cell.dataset.index) : -1;
}

/** A row of the grid. @param {HTMLElement[]} members */
function makeRow(members) {
  const row = make("div", "rw-row", "", { role: "row" });
  row.append(...members);
  return row;
}

/** @param {string} text */
function makeColumnName(text) {
  const name = make("div", "rw-column-name", "", { role: "columnheader", "aria-label": text });
  name.append(make("span", "", text, { title: text }));
  return name;
}

class Matrix {
  // JupyterLab would otherwise take the arrow keys for itself.
  root = make("div", "rw-widget rw-task-matrix", "", { "data-lm-suppress-shortcuts": "true" });
  grid = make("div", "rw-grid");
  chosen = make("div", "rw-chosen", "", { "aria-live": "polite" });
  tip = make("div", "rw-tip", "", { role: "tooltip" });
  data = /** @type {Data} */ ({});
  cells = /** @type {HTMLElement[]} */ ([]);
  rowNames = /** @type {HTMLElement[]} */ ([]);
  columnNames = /** @type {HTMLElement[]} */ ([]);
  stop = -1; // the cell that the Tab key reaches

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
    Object.assign(this, { data, stop: -1 });
    this.makeGrid();
    const [scroll, foot] = [make("div", "rw-scroll"), make("div", "rw-foot")];
    scroll.append(this.grid);
    foot.append(makeColourBar(data), makeLegend(data));
    this.tip.hidden = true;
    const above = [make("div", "rw-title", data.title), make("div", "rw-note", data.note)];
    this.root.replaceChildren(...above.filter((line) => line.textContent), scroll, foot, this.chosen, this.tip);
    this.fit();
    this.showSelected();
    if (focused >= 0) this.cells[Math.min(focused, this.cells.length - 1)]?.focus({ preventScroll: true });
  }

  makeGrid() {
    const { data, grid } = this;
    const { names, count } = data;
    this.cells = Array.from({ length: count ** 2 }, (_, index) => makeCell(data, index));
    this.rowNames = names.map((name) =>
      make("div", "rw-row-name", name, { role: "rowheader", "aria-label": name, title: name }));
    this.columnNames = names.map(makeColumnName);
    const rows = this.rowNames.map((name, row) => makeRow([name, ...this.cells.slice(row * count, (row + 1) * count)]));
    const corner = make("div", "rw-corner", "", { role: "presentation" });
    grid.replaceChildren(makeRow([corner, ...this.columnNames]), ...rows);
    const label = [data.title, data.quantity, "task by task"].filter(Boolean).join(", ");
    for (const [name, value] of Object.entries({ role: "grid", "aria-label": label })) grid.setAttribute(name, value);
  }

  /** Sizes the cells for the width at hand; names that do not fit above them are slanted, and cut at the end. */
  fit() {
    const { root, grid, columnNames, data } = this;
    const width = root.clientWidth;
    if (!this.cells.length || !width) return;
    // As wide as the longest name is when nothing cuts it, and a pixel for what rounding takes.
    const longest = 1 + Math.max(...columnNames.map((name) => name.firstElementChild?.scrollWidth ?? 0));
    const names = Math.min(longest + 10, LONGEST, Math.floor(0.35 * width));
    const room = Math.floor((width - names - 12) / data.count) - GAP;
    const slanted = longest + 12 > Math.min(room, FLAT.most);
    const rise = Math.min(HIGHEST, Math.ceil((longest + 20) * Math.SQRT1_2));
    const left = slanted ? Math.floor((width - names - 12 - rise) / data.count) - GAP : longest + 12;
    const { least, most } = slanted ? SLANTED : FLAT;
    grid.classList.toggle("rw-slanted", slanted);
    for (const [name, size] of Object.entries({ cell: Math.max(least, Math.min(most, left)), names, rise }))
      root.style.setProperty(`--rw-${name}`, `${size}px`);
  }

  /** Outlines the selected pair and says it in words. */
  showSelected() {
    if (!this.cells.length) return;
    const { data, cells, chosen } = this;
    const [row, column] = this.model.get("selected");
    const index = row !== column && row < data.count && column < data.count ? row * data.count + column : -1;
    for (const cell of this.grid.querySelectorAll("[aria-selected=true]")) cell.setAttribute("aria-selected", "false");
    this.rowNames.forEach((name, place) => name.classList.toggle("rw-named", index >= 0 && place === row));
    this.columnNames.forEach((name, place) => name.classList.toggle("rw-named", index >= 0 && place === column));
    chosen.classList.toggle("rw-hint", index < 0);
    chosen.textContent = "Click a cell to select its two tasks, or use the arrow keys and Enter; Escape clears.";
    if (index >= 0) {
      chosen.replaceChildren(...this.lines(index));
      cells[index].setAttribute("aria-selected", "true");
    }
    if (index >= 0 || this.stop < 0) this.moveStop(Math.max(index, 0));
  }

  /** All that is known of a pair: its name, its number, the details. @param {number} index */
  lines(index) {
    const { data } = this;
    const lines = [describe(data, index), ...tellDetails(data, index)].filter(Boolean);
    return [make("strong", "", pairName(data, index)), ...lines.map((text) => make("span", "rw-line", text))];
  }

  /** @param {number} index */
  moveStop(index) {
    if (this.stop >= 0) this.cells[this.stop].tabIndex = -1;
    this.stop = index;
    this.cells[index].tabIndex = 0;
  }

  focusedIndex() {
    const { activeElement } = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    return this.root.contains(activeElement) ? cellIndex(activeElement) : -1;
  }

  /** Shows the tooltip under a cell, or above it for want of room; -1 hides it. @param {number} index */
  point(index) {
    const { tip, root, cells } = this;
    tip.hidden = index < 0 || !cells.length;
    if (tip.hidden) return;
    tip.replaceChildren(...this.lines(index));
    const [cell, box] = [cells[index].getBoundingClientRect(), root.getBoundingClientRect()];
    const [under, above] = [cell.bottom - box.top + 5, cell.top - box.top - tip.offsetHeight - 5];
    tip.style.left = `${Math.max(0, Math.min(cell.left - box.left, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, under + tip.offsetHeight <= box.height ? under : above)}px`;
  }

  /** @param {number} index a cell off the diagonal, or -1 to clear */
  select(index) {
    const { count } = this.data;
    if (index >= 0 && isOwn(count, index)) return;
    this.model.set("selected", index < 0 ? [] : [Math.floor(index / count), index % count]);
    this.model.save_changes();
    this.showSelected();
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const index = cellIndex(event.target);
    if (index < 0) return;
    const next = neighbour(this.data.count, index, event);
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
  const matrix = new Matrix(model);
  const redraw = together(() => matrix.draw());
  const reselect = () => matrix.showSelected();
  const refit = () => matrix.fit();
  const observer = new ResizeObserver(refit);
  el.append(matrix.root);
  matrix.listen();
  matrix.draw();
  for (const name of DATA_TRAITS) model.on(`change:${name}`, redraw);
  model.on("change:selected", reselect);
  observer.observe(matrix.root);
  // Names are measured, and a host's font may come after them.
  document.fonts.addEventListener("loadingdone", refit);
  return () => {
    observer.disconnect();
    redraw.stop();
    document.fonts.removeEventListener("loadingdone", refit);
    for (const name of DATA_TRAITS) model.off(`change:${name}`, redraw);
    model.off("change:selected", reselect);
    matrix.root.remove();
  };
}

export default { render };
