// @ts-check
/// <reference path="base.js" />
// What comes from outside: the maps from Python, and the colours from the host's theme.

/** Asks Python for the maps that are on screen, a megabyte at a time, and keeps the ones used last. */
class Fetcher {
  cache = /** @type {Map<string, Part>} */ (new Map());
  wanted = /** @type {Map<string, Item>} */ (new Map());
  flight = "";
  late = false;
  tries = 0;
  used = 0;
  timer = 0;

  /** @param {Model} model @param {() => void} changed */
  constructor(model, changed) {
    this.model = model;
    this.changed = changed;
  }

  /** The map, or undefined and a note to ask for it. @param {Item} item */
  get(item) {
    const key = JSON.stringify(item);
    const found = this.cache.get(key);
    this.cache.delete(key);
    if (found) this.cache.set(key, found);
    else this.wanted.set(key, item);
    return found;
  }

  /** Sends one request, unless an answer is still to come. */
  ask() {
    if (this.flight || !this.wanted.size || this.tries >= TRIES) return;
    const items = [];
    let expected = 0;
    for (const [key, item] of this.wanted) {
      expected += (item.bins || item.size) ** 2 / 2;
      if (items.length && (expected > CHUNK || items.length === 64)) break;
      items.push({ key, ...item });
    }
    this.flight = Math.random().toString(36).slice(2);
    this.model.set("_want", { id: this.flight, items });
    this.model.save_changes();
    this.timer = setTimeout(() => this.miss(), PATIENCE);
  }

  miss() {
    [this.late, this.flight, this.tries] = [true, "", this.tries + 1];
    this.changed();
  }

  retry() {
    for (const [key, part] of this.cache) if (part.error) this.cache.delete(key);
    [this.tries, this.late] = [0, false];
    this.changed();
  }

  receive() {
    const raw = new Uint8Array(buffer(this.model.get("_parts")));
    if (raw.length < 4) return;
    let at = 4 + new DataView(raw.buffer, raw.byteOffset).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(raw.subarray(4, at)));
    if (head.reset) {
      this.cache.clear();
      this.used = 0;
    }
    for (const { key, length, ...part } of head.parts) {
      this.keep(key, { ...part, bytes: raw.slice(at, at + length) });
      this.wanted.delete(key);
      at += length;
    }
    if (head.reset || head.id === this.flight) {
      clearTimeout(this.timer);
      this.flight = "";
    }
    [this.late, this.tries] = [false, 0];
    this.changed();
  }

  /** @param {string} key @param {Part} part */
  keep(key, part) {
    this.used += part.bytes.length - (this.cache.get(key)?.bytes.length ?? 0);
    this.cache.set(key, part);
    for (const [oldest, { bytes: old }] of this.cache) {
      if (this.used <= ROOM || oldest === key) return;
      this.cache.delete(oldest);
      this.used -= old.length;
    }
  }

  stop() {
    clearTimeout(this.timer);
    this.changed = () => {};
  }
}

/** The style sheet's colours as the host's theme resolves them. */
class Palette {
  probe = make("div", "rw-probe");
  ramp = /** @type {number[][]} */ ([]);
  scale = /** @type {number[][]} */ ([]);
  nothing = [128, 128, 128];
  paper = [255, 255, 255];
  pen = /** @type {CanvasRenderingContext2D} */ (
    Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
      .getContext("2d", { willReadFrequently: true }));

  read() {
    this.paper = this.rgb("var(--rw-paper)", [255, 255, 255]);
    const stops = [0, 1, 2, 3].map((stop) => this.rgb(`var(--rw-ramp-${stop})`));
    const signed = ["var(--rw-less)", "var(--rw-ramp-0)", "var(--rw-more)"].map((colour) => this.rgb(colour));
    [this.ramp, this.scale] = [Palette.table(stops), Palette.table(signed)];
    this.nothing = this.rgb("var(--rw-line)");
  }

  /** Red, green and blue of any colour, painted on the paper. @param {string} colour @param {number[]} [ground] */
  rgb(colour, ground = this.paper) {
    this.probe.style.backgroundColor = colour;
    this.pen.fillStyle = `rgb(${ground})`;
    this.pen.fillRect(0, 0, 1, 1);
    this.pen.fillStyle = getComputedStyle(this.probe).backgroundColor;
    this.pen.fillRect(0, 0, 1, 1);
    return [...this.pen.getImageData(0, 0, 1, 1).data.subarray(0, 3)];
  }

  /** 256 colours from the first stop to the last. @param {number[][]} stops */
  static table(stops) {
    return Array.from({ length: 256 }, (_, at) => {
      const place = (at / 255) * (stops.length - 1);
      const from = Math.min(Math.floor(place), stops.length - 2);
      return stops[from].map((part, i) => Math.round(part + (place - from) * (stops[from + 1][i] - part)));
    });
  }

  /** @param {number} value @param {number[]} range @param {boolean} signed */
  colour(value, [low, high], signed) {
    if (Number.isNaN(value)) return this.nothing;
    const share = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
    return (signed ? this.scale : this.ramp)[Math.round(255 * share)];
  }
}
