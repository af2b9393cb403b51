// @ts-check
// Attention of one head on one prompt: a query x key matrix, and the prompt shaded by what one query attends to.

/**
 * @typedef {{get: (name: string) => any, set: (name: string, value: any) => void, save_changes: () => void,
 *   on: (event: string, call: () => void) => void, off: (event: string, call: () => void) => void}} Model
 */

const DATA_TRAITS = ["pattern", "tokens", "title", "sink"];
const LABELLED = 11; // smallest cell that leaves room for a label of its own
const LARGEST = 26;
const TALLEST = 720;
const TOP = 20; // room above the first row and right of the last column
const EDGE = 24;
const LETTER = 6.7; // width of a letter of the label font, in pixels
const LONGEST = 14; // letters of a label
/** @type {Record<string, string>} */
const WHITE = { " ": "·", "\u00a0": "·", "\n": "↵", "\r": "↵", "\t": "⇥" };

/** @param {string} name @param {string} [text] */
function make(name, text = "") {
  const element = document.createElement("div");
  element.className = name;
  element.textContent = text;
  return element;
}

/** @param {string} tag @param {Record<string, string | number>} attributes @param {string} [text] */
function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @param {any} value what a host hands over for bytes */
function bytes(value) {
  if (!value) return new Uint8Array();
  return value instanceof ArrayBuffer ? new Uint8Array(value)
    : new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
}

/** A token with its white space made visible. @param {string} token */
function visible(token) {
  return token.replace(/[ \u00a0\n\r\t]/g, (letter) => WHITE[letter]) || "∅";
}

/** @param {string} token */
function short(token) {
  const letters = [...visible(token)];
  return letters.length > LONGEST ? `${letters.slice(0, LONGEST - 1).join("")}…` : letters.join("");
}

/** Room a label needs; letters of wide scripts count twice. @param {string} label */
function room(label) {
  return [...label].reduce((sum, letter) => sum + (letter > "\u2e80" ? 2 : 1) * LETTER, 0);
}

function makeScale() {
  const [box, ends] = [make("rw-scale"), make("rw-ends")];
  ends.append(...["0", "0.5", "1"].map((text) => make("", text)));
  box.append(make("", "attention probability"), make("rw-bar"), ends);
  return box;
}

/** Position of the chip that an event is about, or -1. @param {EventTarget | null} target */
function chipPosition(target) {
  const chip = target instanceof Element ? target.closest(".rw-chip") : null;
  return chip instanceof HTMLElement ? Number(chip.dataset.position) : -1;
}

class Attention {
  root = make("rw-attention");
  title = make("rw-title");
  plot = make("rw-plot");
  strip = make("rw-strip");
  live = make("rw-live");
  read = make("rw-read");
  tokens = /** @type {string[]} */ ([]);
  bytes = new Uint8Array();
  width = 0;
  cell = 0;
  left = 0; // where the matrix starts, right of the query labels

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    // JupyterLab would otherwise take the arrow keys for itself.
    this.root.dataset.lmSuppressShortcuts = "true";
    this.strip.setAttribute("role", "listbox");
    this.strip.setAttribute("aria-label", "Prompt tokens; the selected one is the query");
    this.live.setAttribute("aria-live", "polite");
    const [body, side] = [make("rw-body"), make("rw-side")];
    side.append(makeScale(), this.strip, this.live, this.read);
    body.append(this.plot, side);
    this.root.append(this.title, body);
  }

  /** Builds everything anew and keeps the keyboard where it was. */
  draw() {
    const typing = this.strip.contains(/** @type {Document | ShadowRoot} */ (this.root.getRootNode()).activeElement);
    this.bytes = bytes(this.model.get("pattern"));
    this.tokens = this.model.get("tokens");
    this.title.textContent = this.model.get("title");
    const needed = (this.tokens.length * (this.tokens.length + 1)) / 2;
    const fits = this.tokens.length > 0 && this.bytes.length === needed;
    const problem = `pattern has ${this.bytes.length} bytes, ${this.tokens.length} tokens need ${needed}`;
    this.root.classList.toggle("rw-without", !fits);
    if (!fits) {
      this.plot.replaceChildren(make("rw-problem", this.tokens.length ? problem : "No prompt to show."));
      this.tokens = [];
      return;
    }
    this.drawStrip();
    this.drawMatrix();
    this.showQuery();
    if (typing) this.chip(Math.max(0, this.selected())).focus({ preventScroll: true });
  }

  /** Fits the matrix to another width; a change of height alone asks for nothing. */
  resize() {
    if (!this.tokens.length || this.root.clientWidth === this.width) return;
    this.drawMatrix();
    this.showQuery();
  }

  /** Draws the matrix for the width at hand. */
  drawMatrix() {
    const count = this.tokens.length;
    this.width = this.root.clientWidth;
    this.left = Math.ceil(Math.max(48, ...this.tokens.map((token) => room(short(token)))) + 14);
    const free = Math.min((this.width || 640) - this.left - EDGE, TALLEST);
    this.cell = Math.max(count <= 64 ? LABELLED : 3, Math.min(LARGEST, Math.floor(free / count)));
    const side = this.cell * count;
    const [width, height] = [this.left + side + EDGE, TOP + side + this.left];
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg.setAttribute("aria-label", `Attention of ${count} queries (rows) to ${count} keys (columns)`);
    const body = draw("g", { transform: `translate(${this.left} ${TOP})` });
    this.row = draw("rect", { class: "rw-row", x: 0, height: this.cell });
    this.spot = draw("rect", { class: "rw-spot", width: this.cell, height: this.cell });
    body.append(...this.shades(), ...this.sinkMark(), ...this.labels(), this.row, this.spot);
    svg.append(body);
    this.plot.replaceChildren(svg);
  }

  /** The half that a causal model can use, then one path for all cells of the same byte: exact shades in the theme's
   * colour with few elements. */
  shades() {
    const { cell, tokens } = this;
    const pieces = /** @type {string[][]} */ ([]);
    for (let query = 0, index = 0; query < tokens.length; query++)
      for (let key = 0; key <= query; key++, index++)
        (pieces[this.bytes[index]] ??= []).push(`M${key * cell} ${query * cell}h${cell}v${cell}h-${cell}z`);
    const ground = draw("path", { d: `M0 0${`h${cell}v${cell}`.repeat(tokens.length)}H0z`, class: "rw-ground" });
    const paths = pieces.map((piece, value) =>
      draw("path", { d: piece.join(""), class: "rw-shade", "fill-opacity": ((value / 255) ** 2).toFixed(5) }));
    return [ground, ...paths.filter((_, value) => value > 0)];
  }

  labels() {
    const { cell, tokens } = this;
    const [step, below] = [Math.ceil(LABELLED / cell), tokens.length * cell + 6];
    const axes = ["↑ query", "key →"].map((text, line) =>
      draw("text", { x: -6, y: below + 8 + 15 * line, class: "rw-label" }, text));
    const names = tokens.flatMap((token, position) => {
      if (position % step) return [];
      const middle = (position + 0.5) * cell;
      const query = draw("text", { x: -6, y: middle, class: "rw-label", "data-query": position }, short(token));
      const turn = `translate(${middle} ${below}) rotate(-90)`;
      return [query, draw("text", { transform: turn, class: "rw-label" }, short(token))];
    });
    return [...axes, ...names];
  }

  /** Frames the column of the key that is pointed out and names it above. */
  sinkMark() {
    const { cell, tokens, model } = this;
    const sink = model.get("sink");
    if (sink < 0 || sink >= tokens.length) return [];
    const [start, height] = [sink * cell, (tokens.length - sink) * cell];
    const name = draw("text", { x: start + cell / 2, y: start - 6, class: "rw-sink-name" }, "▾ sink");
    return [draw("rect", { x: start, y: start, width: cell, height, class: "rw-sink" }), name];
  }

  drawStrip() {
    const sink = this.model.get("sink");
    this.strip.replaceChildren(...this.tokens.map((token, position) => {
      const chip = make(position === sink ? "rw-chip rw-is-sink" : "rw-chip", visible(token));
      chip.setAttribute("role", "option");
      chip.setAttribute("aria-label", `${visible(token)}, position ${position}${position === sink ? ", sink" : ""}`);
      chip.dataset.position = String(position);
      return chip;
    }));
  }

  /** @param {number} position */
  chip(position) {
    return /** @type {HTMLElement} */ (this.strip.children[position]);
  }

  selected() {
    const token = this.model.get("token");
    return token < this.tokens.length ? token : -1;
  }

  /** @param {number} query @param {number} key */
  probability(query, key) {
    return (this.bytes[(query * (query + 1)) / 2 + key] / 255) ** 2;
  }

  /** @param {number} position */
  name(position) {
    return `'${visible(this.tokens[position])}' (${position})`;
  }

  /** Marks the selected query in the matrix, the prompt and the spoken line. */
  showQuery() {
    if (!this.tokens.length) return;
    const query = this.selected();
    this.row?.classList.toggle("rw-gone", query < 0);
    this.row?.setAttribute("y", String(query * this.cell));
    this.row?.setAttribute("width", String((query + 1) * this.cell));
    for (const label of /** @type {NodeListOf<SVGElement>} */ (this.plot.querySelectorAll("[data-query]")))
      label.classList.toggle("rw-strong", Number(label.dataset.query) === query);
    this.tokens.forEach((_, position) => {
      this.chip(position).setAttribute("aria-selected", String(position === query));
      this.chip(position).tabIndex = position === Math.max(query, 0) ? 0 : -1;
    });
    this.live.textContent = this.summary(query);
    this.point(-1, -1);
  }

  /** The three keys that the query attends to most, in words. @param {number} query */
  summary(query) {
    if (query < 0) return "Click a row or a token to select a query; the arrow keys move it, Escape clears it.";
    const keys = Array.from({ length: query + 1 }, (_, key) => key);
    keys.sort((a, b) => this.probability(query, b) - this.probability(query, a));
    const top = keys.slice(0, 3).map((key) => `${this.name(key)} ${this.probability(query, key).toFixed(2)}`);
    return `Query ${this.name(query)} attends most to ${top.join(", ")}.`;
  }

  /** Shades the prompt by the query under the pointer, or else by the selected one. @param {number} query */
  shadeStrip(query) {
    this.tokens.forEach((_, key) => {
      const share = key <= query ? this.probability(query, key) : 0;
      const chip = this.chip(key);
      chip.style.setProperty("--rw-share", `${(100 * share).toFixed(1)}%`);
      chip.classList.toggle("rw-later", query >= 0 && key > query);
      chip.classList.toggle("rw-asks", key === query);
    });
  }

  /** Says what is under the pointer; -1 is nothing. @param {number} query @param {number} key */
  point(query, key) {
    const inside = key >= 0 && key <= query;
    this.shadeStrip(query >= 0 ? query : this.selected());
    this.spot?.classList.toggle("rw-gone", !inside);
    this.spot?.setAttribute("x", String(key * this.cell));
    this.spot?.setAttribute("y", String(query * this.cell));
    if (query < 0) this.read.textContent = "";
    else if (key < 0) this.read.textContent = `query ${this.name(query)}`;
    else if (!inside) this.read.textContent = `query ${this.name(query)} cannot see the later token ${this.name(key)}`;
    else {
      const value = this.probability(query, key).toFixed(2);
      this.read.textContent = `query ${this.name(query)} → key ${this.name(key)}: ${value}`;
    }
  }

  /** Query and key under the pointer, -1 where there is none. @param {MouseEvent} event */
  under(event) {
    const box = this.plot.firstElementChild?.getBoundingClientRect();
    const at = (/** @type {number} */ offset) => {
      const position = Math.floor(offset / this.cell);
      return position >= 0 && position < this.tokens.length ? position : -1;
    };
    return box ? [at(event.clientY - box.top - TOP), at(event.clientX - box.left - this.left)] : [-1, -1];
  }

  /** @param {number} query */
  select(query) {
    this.model.set("token", query);
    this.model.save_changes();
    this.showQuery();
    if (query >= 0) this.chip(query).focus({ preventScroll: true });
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const [here, last] = [chipPosition(event.target), this.tokens.length - 1];
    const from = this.selected();
    const [before, after] = from < 0 ? [here, here] : [Math.max(0, from - 1), Math.min(last, from + 1)];
    /** @type {Record<string, number>} */
    const moves = {
      ArrowUp: before, ArrowLeft: before, ArrowDown: after, ArrowRight: after, Home: 0, End: last, Enter: here,
      " ": here, Escape: -1,
    };
    if (here < 0 || !(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    this.select(moves[event.key]);
    event.preventDefault();
    event.stopPropagation();
  }

  listen() {
    const { plot, strip } = this;
    plot.addEventListener("pointermove", (event) => this.point(this.under(event)[0], this.under(event)[1]));
    plot.addEventListener("click", (event) => this.under(event)[0] >= 0 && this.select(this.under(event)[0]));
    strip.addEventListener("pointerover", ({ target }) => this.point(chipPosition(target), -1));
    strip.addEventListener("click", ({ target }) => chipPosition(target) >= 0 && this.select(chipPosition(target)));
    strip.addEventListener("keydown", (event) => this.press(event));
    for (const area of [plot, strip]) area.addEventListener("pointerleave", () => this.point(-1, -1));
  }
}

/** One call for all the traits that one message changes. @param {() => void} call */
function together(call) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call);
  };
}

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const view = new Attention(model);
  const redraw = together(() => view.draw());
  const reselect = () => view.showQuery();
  const observer = new ResizeObserver(() => view.resize());
  el.append(view.root);
  view.listen();
  view.draw();
  for (const name of DATA_TRAITS) model.on(`change:${name}`, redraw);
  model.on("change:token", reselect);
  observer.observe(view.root);
  return () => {
    observer.disconnect();
    for (const name of DATA_TRAITS) model.off(`change:${name}`, redraw);
    model.off("change:token", reselect);
    view.root.remove();
  };
}

export default { render };
