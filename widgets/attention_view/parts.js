// @ts-check
/// <reference path="base.js" />
/// <reference path="data.js" />
// One map on a canvas, and the prompt as a strip of tokens.

/** One map on a canvas, with frames around what is selected and pointed at. */
class Plate {
  root = make("div", "rw-plate");
  canvas = /** @type {HTMLCanvasElement} */ (make("canvas", "rw-canvas"));
  line = make("div", "rw-frame rw-line");
  spot = make("div", "rw-frame rw-spot");
  side = 0;

  constructor() {
    this.line.hidden = this.spot.hidden = true;
    this.root.append(this.canvas, this.line, this.spot);
  }

  /** Sets the size, in pixels of the page, and leaves the canvas clear. @param {number} side */
  resize(side) {
    const pixels = Math.max(1, Math.round(side * (devicePixelRatio || 1)));
    [this.canvas.width, this.canvas.height, this.side] = [pixels, pixels, side];
    for (const element of [this.canvas, this.root]) element.style.width = element.style.height = `${side}px`;
  }

  /** Paints a window of a map; where cells are smaller than pixels, each pixel has the largest of its cells.
   * @param {Part | undefined} part @param {number} size @param {boolean} causal @param {Frame} view
   * @param {number[][]} colours of the 256 bytes, and of masked cells
   * @param {number[]} ranks which byte wins a pixel @param {Set<number>} masked */
  paint(part, size, causal, view, colours, ranks, masked) {
    this.resize(this.side);
    const [pen, pixels] = [this.canvas.getContext("2d"), this.canvas.width];
    if (!part?.bytes.length) return;
    const cells = Math.min(view.span, pixels);
    const place = Int32Array.from({ length: view.span }, (_, at) => Math.floor((at * cells) / view.span));
    const hidden = Uint8Array.from({ length: view.span }, (_, at) => Number(masked.has(view.key + at)));
    const image = new ImageData(cells, cells);
    const best = new Int16Array(cells * cells).fill(-1);
    const chosen = new Int16Array(cells * cells);
    for (let row = 0; row < view.span; row++) {
      const query = view.query + row;
      const first = indexOf(size, causal, query, view.key);
      const end = causal ? Math.min(view.span, query - view.key + 1) : view.span;
      for (let column = 0; column < end; column++) {
        const byte = hidden[column] ? 256 : part.bytes[first + column];
        const at = place[row] * cells + place[column];
        if (ranks[byte] > best[at]) [best[at], chosen[at]] = [ranks[byte], byte];
      }
    }
    const out = new Uint32Array(image.data.buffer);
    const packed = colours.map(([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0);
    for (let at = 0; at < out.length; at++) if (best[at] >= 0) out[at] = packed[chosen[at]];
    const small = Object.assign(document.createElement("canvas"), { width: cells, height: cells });
    small.getContext("2d")?.putImageData(image, 0, 0);
    if (pen) pen.imageSmoothingEnabled = false;
    pen?.drawImage(small, 0, 0, pixels, pixels);
  }

  /** Frames a rectangle of cells, or nothing. @param {HTMLElement} frame @param {Frame} view @param {number[]} cells */
  frame(frame, view, [query, key, rows, columns]) {
    const cell = this.side / view.span;
    const ends = (/** @type {number} */ from, /** @type {number} */ count) => {
      const middle = (from + count / 2) * cell;
      const half = Math.max(1.5, (count * cell) / 2);
      return [Math.max(0, middle - half), Math.min(this.side, middle + half)];
    };
    const [left, right] = ends(key - view.key, columns);
    const [top, bottom] = ends(query - view.query, rows);
    frame.hidden = query < 0 || right - left < 1 || bottom - top < 1;
    const [width, height] = [right - left, bottom - top].map((length) => `${length}px`);
    Object.assign(frame.style, { left: `${left}px`, top: `${top}px`, width, height });
  }

  /** Query and key under the pointer, -1 where there is none.
   * @param {MouseEvent} event @param {Frame} view @param {number} size */
  under(event, view, size) {
    const box = this.canvas.getBoundingClientRect();
    const at = (/** @type {number} */ offset, /** @type {number} */ from) => {
      const position = from + Math.floor((offset / (box.width || 1)) * view.span);
      return position >= from && position < Math.min(size, from + view.span) ? position : -1;
    };
    return [at(event.clientY - box.top, view.query), at(event.clientX - box.left, view.key)];
  }
}

/** The prompt as chips, a window of it where it is long, under a bar of the whole. */
class Strip {
  root = make("div", "rw-prompt");
  name = make("div", "rw-caption");
  bar = /** @type {HTMLCanvasElement} */ (make("canvas", "rw-overview"));
  bracket = make("div", "rw-frame rw-bracket");
  list = make("div", "rw-strip", "", { role: "listbox" });
  tokens = /** @type {string[]} */ ([]);
  from = 0;

  constructor() {
    this.over = make("div", "rw-over");
    this.over.append(this.bar, this.bracket);
    this.root.append(this.name, this.over, this.list);
  }

  /** @param {string[]} tokens @param {string} name @param {number} about the position that must be there */
  fill(tokens, name, about) {
    const latest = Math.max(0, tokens.length - WINDOW);
    const outside = about >= 0 && (about < this.from || about >= this.from + WINDOW);
    const from = Math.max(0, Math.min(latest, outside ? about - WINDOW / 2 : this.from));
    this.name.textContent = name;
    this.list.setAttribute("aria-label", `Tokens of the prompt ${name}`.trim());
    if (from === this.from && tokens === this.tokens) return;
    [this.tokens, this.from] = [tokens, from];
    this.over.hidden = tokens.length <= WINDOW;
    this.bracket.style.left = `${(100 * from) / tokens.length}%`;
    this.bracket.style.width = `${(100 * WINDOW) / tokens.length}%`;
    this.list.replaceChildren(...tokens.slice(from, from + WINDOW).map((token, at) => {
      const label = `${visible(token)}, position ${from + at}`;
      const chip = make("div", "rw-chip", visible(token), { role: "option", "aria-label": label });
      chip.dataset.position = String(from + at);
      return chip;
    }));
  }

  /** @param {number} position */
  chip(position) {
    return /** @type {HTMLElement | undefined} */ (this.list.children[position - this.from]);
  }

  /** Position an event is about, or -1. @param {Event} event */
  static under({ target }) {
    const chip = target instanceof Element ? target.closest(".rw-chip") : null;
    return chip instanceof HTMLElement ? Number(chip.dataset.position) : -1;
  }

  /** @param {(number[] | null)[]} colours of every token, null for none @param {number} asks @param {number} selected
   * @param {Palette} palette */
  shade(colours, asks, selected, palette) {
    for (const [at, chip] of /** @type {HTMLElement[]} */ ([...this.list.children]).entries()) {
      const [position, colour] = [this.from + at, colours[this.from + at]];
      chip.style.backgroundColor = colour ? `rgb(${colour})` : "";
      chip.style.color = colour ? (light(colour) > 0.179 ? "#000" : "#fff") : "";
      chip.classList.toggle("rw-later", !colour && colours.length > 0);
      chip.classList.toggle("rw-asks", position === asks);
      chip.setAttribute("aria-selected", String(position === selected));
      chip.tabIndex = position === (selected >= 0 ? selected : this.from) ? 0 : -1;
    }
    if (!this.over.hidden) this.drawBar(colours, palette.nothing);
  }

  /** @param {(number[] | null)[]} colours @param {number[]} none */
  drawBar(colours, none) {
    // As many columns as tokens: the page scales them, and a column per pixel keeps the one farthest from the ground.
    const pen = this.bar.getContext("2d");
    const width = Math.max(1, Math.min(this.tokens.length, Math.round(this.over.clientWidth * devicePixelRatio)));
    [this.bar.width, this.bar.height] = [width, 1];
    const ground = colours.find(Boolean) ? none : [0, 0, 0];
    const best = /** @type {(number[] | null)[]} */ (Array(width).fill(null));
    const far = (/** @type {number[] | null} */ colour) =>
      colour ? colour.reduce((sum, part, i) => sum + Math.abs(part - this.zero[i]), 0) : -1;
    colours.forEach((colour, position) => {
      const at = Math.floor((position * width) / this.tokens.length);
      if (far(colour) > far(best[at])) best[at] = colour;
    });
    best.forEach((colour, at) => {
      if (pen) pen.fillStyle = `rgb(${colour ?? ground})`;
      if (colour) pen?.fillRect(at, 0, 1, 1);
    });
  }

  zero = [255, 255, 255];
}

/** Relative luminance. @param {number[]} colour */
function light(colour) {
  const [red, green, blue] = colour.map((part) =>
    part <= 10.31475 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
