// @ts-check
/// <reference path="scales.js" />
// One panel: its axes, its lines with their intervals, and beside it each line's name and value.

const [LEFT, RIGHT, TOP, HIGH, FOOT] = [54, 8, 6, 190, 22]; // pixels around the plot, and its height
const FEW = 30; // points up to which each is marked
const [DODGE, ASIDE] = [5, 18]; // pixels between the intervals of two lines, and between those of the first and the last

class LineView {
  root = draw("g", "rw-line");
  bars = draw("path", "rw-bars");
  way = draw("path", "rw-way");
  dots = draw("path", "rw-dots");
  here = draw("path", "rw-here");
  entry = make("div", "rw-entry");
  name = make("span", "rw-name");
  value = make("span", "rw-value");
  more = make("span", "rw-more");
  swatch = draw("svg", "rw-swatch", { width: 26, height: 10, "aria-hidden": "true" });
  sample = draw("path", "rw-way", { d: "M1 5H25" });

  constructor() {
    this.root.append(this.bars, this.way, this.dots, this.here);
    this.swatch.append(this.sample);
    this.entry.append(this.swatch, this.name, this.value, this.more);
  }

  /** Draws a line. @param {Drawn} line @param {(value: number) => number} across @param {(value: number) => number} up
   * @param {{wide: number, aside: number, log: boolean}} look */
  draw(line, across, up, { wide, aside, log }) {
    const quiet = !line.colour;
    this.root.setAttribute("class", `rw-line${line.faint ? " rw-faint" : ""}${quiet ? " rw-quiet" : ""}`);
    this.swatch.setAttribute("class", `rw-swatch${quiet ? " rw-quiet" : ""}`);
    for (const element of [this.root, this.swatch]) {
      element.style.setProperty("--rw-colour", line.colour);
      element.style.setProperty("--rw-wide", `${wide}px`);
    }
    for (const way of [this.way, this.sample])
      way.setAttribute("stroke-dasharray", line.faint ? "" : DASHES[line.dash % DASHES.length]);
    const shown = (/** @type {number} */ at) => Number.isFinite(line.strong[at]) && (!log || line.strong[at] > 0);
    const place = (/** @type {number} */ at) => `${(across(line.x[at]) + aside).toFixed(1)} ${up(line.strong[at]).toFixed(1)}`;
    let [way, dots, bars] = ["", "", ""];
    for (let at = 0; at < line.x.length; at += 1) {
      if (!shown(at)) continue;
      way += `${at && shown(at - 1) ? "L" : "M"}${place(at)}`;
      if (line.role === "line" || (line.x.length <= FEW && !line.faint)) dots += `M${place(at)}h0`;
      if (line.low && line.high && Number.isFinite(line.low[at] + line.high[at]))
        bars += bar(across(line.x[at]) + aside, up(line.low[at]), up(line.high[at]));
    }
    this.way.setAttribute("d", way);
    this.dots.setAttribute("d", dots);
    this.bars.setAttribute("d", bars);
    this.spot = (/** @type {number} */ at) => (at >= 0 && !line.faint && shown(at) ? `M${place(at)}h0` : "");
    write(this.name, line.name);
  }

  /** The value at a step beside the panel, and a spot on the line; without a step the last value.
   * @param {Drawn} line @param {string} kind @param {number | null} step */
  tell(line, kind, step) {
    const at = placeAt(line, step);
    this.here.setAttribute("d", step === null ? "" : this.spot?.(at) ?? "");
    const { value, more } = told(line, kind, step, at);
    write(this.value, value);
    write(this.more, more);
    return [line.name, value, more].filter(Boolean).join(" ");
  }
}

/** An interval with its ends. @param {number} x @param {number} low @param {number} high */
function bar(x, low, high) {
  const [left, right] = [(x - 3).toFixed(1), (x + 3).toFixed(1)];
  return `M${x.toFixed(1)} ${low.toFixed(1)}V${high.toFixed(1)}M${left} ${low.toFixed(1)}H${right}M${left} ${high.toFixed(1)}H${right}`;
}

/** Place of a line's last point that is not after a step, or of its last. @param {Line} line @param {number | null} step */
function placeAt({ x }, step) {
  return x.length ? lastAt(x, step ?? Infinity) : -1;
}

/** What is said of a line at a step. @param {Drawn} line @param {string} kind @param {number | null} step
 * @param {number} at */
function told(line, kind, step, at) {
  if (at < 0) return { value: "no value", more: "" };
  const more = [];
  if (line.low && line.high && Number.isFinite(line.low[at] + line.high[at]))
    more.push(`${spoken(line.low[at], kind).replace(" %", "")} to ${spoken(line.high[at], kind)}`);
  const own = line.raw ? lastAt(line.raw.x, step ?? Infinity) : -1;
  if (line.raw && line.raw.x !== line.x && line.raw.x[own] === (step ?? line.x[at]))
    more.push(`raw ${spoken(line.raw.y[own], kind)}`);
  return { value: spoken(line.strong[at], kind), more: more.join(", ") };
}

class PanelView {
  root = make("div", "rw-panel");
  title = make("div", "rw-panel-title");
  when = make("div", "rw-when");
  svg = draw("svg", "rw-svg", { "aria-hidden": "true" });
  grid = draw("path", "rw-grid");
  words = draw("g", "rw-ticks");
  inside = draw("svg", "rw-inside", { x: LEFT, y: TOP, height: HIGH });
  cursor = draw("path", "rw-cursor");
  taken = draw("rect", "rw-taken", { y: 0, height: HIGH });
  side = make("div", "rw-side");
  views = /** @type {LineView[]} */ ([]);
  lines = /** @type {Drawn[]} */ ([]);
  kind = "value";

  constructor() {
    this.inside.append(this.taken, this.cursor);
    this.svg.append(this.grid, this.words, this.inside);
    this.root.append(this.title, this.when, this.svg, this.side);
  }

  /** @param {PanelData} panel @param {Drawn[]} lines those that are shown @param {Axis} steps @param {number} width
   * @param {{log: boolean, last: boolean}} how */
  draw({ title, unit, kind }, lines, steps, width, how) {
    const log = how.log && kind === "loss";
    this.kind = kind;
    this.lines = lines;
    write(this.title, unit && kind !== "share" ? `${title} (${unit})` : title);
    this.svg.setAttribute("width", String(width));
    this.svg.setAttribute("height", String(TOP + HIGH + (how.last ? FOOT : 4)));
    this.inside.setAttribute("width", String(Math.max(1, width - LEFT - RIGHT)));
    this.across = scaled(steps, 0, width - LEFT - RIGHT);
    const values = valueAxis(kind, lines, steps, log);
    this.drawAxes(steps, values, width, how.last);
    this.drawLines(lines, scaled(values, HIGH, 0), log);
  }

  /** @param {Axis} steps @param {Axis} values @param {number} width @param {boolean} last */
  drawAxes(steps, values, width, last) {
    const [up, across] = [scaled(values, TOP + HIGH, TOP), this.across ?? Number];
    const rows = this.kind === "share" ? [0, 0.25, 0.5, 0.75, 1] : ticks(values, 5);
    const columns = ticks(steps, Math.max(2, Math.min(10, width / 90)), 1).filter((step) => step >= 0);
    const words = [
      ...rows.map((value) => ({ x: LEFT - 7, y: up(value) + 4, text: tick(value, this.kind), to: "end" })),
      ...(last ? columns : []).map((step) =>
        ({ x: LEFT + across(step), y: TOP + HIGH + 17, text: tick(step, "value"), to: "middle" })),
    ];
    this.grid.setAttribute("d", rows.map((value) => `M${LEFT} ${up(value).toFixed(1)}H${width - RIGHT}`).join("")
      + columns.map((step) => `M${(LEFT + across(step)).toFixed(1)} ${TOP}V${TOP + HIGH}`).join(""));
    while (this.words.childElementCount < words.length) this.words.append(draw("text", "rw-tick"));
    while (this.words.childElementCount > words.length) this.words.lastElementChild?.remove();
    words.forEach(({ x, y, text, to }, at) => {
      const word = this.words.children[at];
      for (const [name, value] of Object.entries({ x: x.toFixed(1), y: y.toFixed(1), "text-anchor": to }))
        word.setAttribute(name, value);
      write(word, text);
    });
  }

  /** @param {Drawn[]} lines @param {(value: number) => number} up @param {boolean} log */
  drawLines(lines, up, log) {
    while (this.views.length < lines.length) {
      const view = new LineView();
      this.views.push(view);
      this.inside.append(view.root);
    }
    for (const view of this.views.splice(lines.length)) {
      view.root.remove();
      view.entry.remove();
    }
    const bounded = lines.filter((line) => line.low);
    lines.forEach((line, at) => {
      // Lines of tasks that are equally right lie upon each other: the lower ones are wider, and intervals side by side.
      const under = this.kind === "share" ? Math.min(lines.length - 1 - at, 3) : 0;
      const wide = line.faint ? 1 : line.role === "mean" ? 2.5 : 1.75 + under;
      const aside = line.low ? (bounded.indexOf(line) - (bounded.length - 1) / 2) * this.dodge(bounded) : 0;
      this.views[at].draw(line, this.across ?? Number, up, { wide, aside, log });
      if (line.faint) this.views[at].entry.remove();
      else if (this.views[at].entry.parentElement !== this.side) this.side.append(this.views[at].entry);
    });
  }

  /** Pixels between the intervals of neighbouring lines: less where the steps measured lie close. @param {Drawn[]} lines */
  dodge(lines) {
    const { x } = lines[0];
    const gap = x.length > 1 && this.across ? (this.across(x[x.length - 1]) - this.across(x[0])) / (x.length - 1) : 999;
    return Math.min(DODGE, Math.min(ASIDE, 0.4 * gap) / lines.length);
  }

  /** Shows a step, or the last values, and gives them in words. @param {number | null} step */
  point(step) {
    const x = step === null || !this.across ? -1 : this.across(step);
    this.cursor.setAttribute("d", x < 0 ? "" : `M${x.toFixed(1)} 0V${HIGH}`);
    const words = this.lines.map((line, at) => ({ line, said: this.views[at].tell(line, this.kind, step) }));
    const when = this.whenFor(step);
    write(this.when, when);
    const told = words.filter(({ line }) => !line.faint).map(({ said }) => said).join("; ");
    return `${this.title.textContent}, ${when}: ${told}`;
  }

  /** Which step the values beside the panel are of; what is measured now and then lags behind the cursor.
   * @param {number | null} step */
  whenFor(step) {
    const found = this.lines.filter((line) => !line.faint && line.x.length).map((line) => line.x[placeAt(line, step)]);
    if (!found.length) return "";
    const [first, last] = [Math.min(...found), Math.max(...found)].map((each) => each.toLocaleString("en-US"));
    const steps = first === last ? `step ${first}` : `steps ${first} to ${last}`;
    return step === null ? `last: ${steps}` : Math.max(...found) < step ? `${steps}, the last before` : steps;
  }

  /** Marks the steps that are being taken, as far as there are some. @param {[number, number] | null} range pixels */
  take(range) {
    const [from, to] = range ?? [0, 0];
    this.taken.setAttribute("x", String(Math.min(from, to)));
    this.taken.setAttribute("width", String(Math.abs(to - from)));
  }
}
