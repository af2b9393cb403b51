// @ts-check
/// <reference path="panel.js" />
/// <reference path="tools.js" />
// The whole widget: tools, panels over one axis of steps, and one cursor that reads all of them.

const [DRAG, NARROW, LEAP] = [6, 760, 10]; // pixels of a drag; width below which values go below; stops a page of keys
const BESIDE = { least: 322, share: 0.3, most: 400 }; // pixels for the values beside the plots
const HINT = "Point at the curves to read their values, drag to look at some steps, double-click for all. Keys: arrows "
  + "move the cursor, Home and End, + and − zoom, 0 shows all, Escape clears.";
const LABEL = "Curves over training steps; arrow keys move the cursor";

class Curves {
  // JupyterLab would otherwise take the arrow keys for itself.
  root = make("div", "rw-widget rw-training-curves", "", { "data-lm-suppress-shortcuts": "true" });
  said = /** @type {Record<string, HTMLElement>} */ ({});
  problem = make("div", "rw-problem", "", { role: "alert" });
  none = make("div", "rw-none", "No step yet.");
  body = make("div", "rw-body", "", { tabindex: "0", role: "application", "aria-roledescription": "line chart",
    "aria-label": LABEL });
  axis = make("div", "rw-axis", "training step");
  hint = make("div", "rw-hint", HINT);
  live = make("div", "rw-live", "", { "aria-live": "polite" });
  data = /** @type {Data | null} */ (null);
  panels = /** @type {PanelView[]} */ ([]);
  shown = /** @type {Drawn[]} */ ([]);
  stops = /** @type {number[]} */ ([]);
  steps = /** @type {Axis} */ ({ from: 0, to: 1, log: false });
  // What never leaves the page: the part of the steps that is looked at, the cursor and the start of a drag.
  zoom = /** @type {[number, number] | null} */ (null);
  cursor = /** @type {number | null} */ (null);
  start = /** @type {number | null} */ (null);
  width = 0;

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.tools = new Tools(model, { changed: () => this.draw(), reset: () => this.look(null) });
    for (const [name, look] of Object.entries(SAID)) this.said[name] = make("div", look);
    this.root.append(...Object.values(this.said), this.problem, this.tools.root, this.none, this.body, this.hint, this.live);
    this.body.append(this.axis);
    this.listen();
  }

  /** Reads the traits and draws them; what does not fit together yet is said, above the curves as they were. */
  load() {
    const data = read(this.model);
    for (const [name, element] of Object.entries(this.said)) write(element, this.model.get(name));
    this.problem.hidden = typeof data !== "string";
    write(this.problem, typeof data === "string" ? data : "");
    if (typeof data === "string") return;
    this.data = data;
    this.draw();
  }

  /** Draws the data at hand, with the elements that are there. */
  draw() {
    if (!this.data) return;
    const { data, model } = this;
    const hidden = /** @type {string[]} */ (model.get("hidden"));
    this.shown = prepared(data, model.get("span")).filter(({ owner }) => owner < 0 || !hidden.includes(data.tasks[owner]));
    this.stops = stops(this.shown);
    this.steps = this.range(data.lines);
    const empty = !data.lines.some(({ x }) => x.length);
    this.none.hidden = !empty;
    for (const element of [this.tools.root, this.body, this.hint]) element.hidden = empty;
    this.tools.draw(data, this.zoom !== null);
    if (!empty) this.drawPanels();
  }

  /** The steps that are shown, with a little room at both ends. @param {Line[]} lines @returns {Axis} */
  range(lines) {
    const ends = lines.filter(({ x }) => x.length).flatMap(({ x }) => [x[0], x[x.length - 1]]);
    const all = [Math.min(0, ...ends), Math.max(1, ...ends)];
    const [from, to] = this.zoom ?? all;
    const room = 0.012 * (to - from);
    return { from: from - room, to: to + room, log: false };
  }

  drawPanels() {
    const { panels } = /** @type {Data} */ (this.data);
    const narrow = this.root.clientWidth < NARROW;
    this.root.classList.toggle("rw-narrow", narrow);
    const all = this.root.clientWidth || 900;
    const beside = narrow ? 0 : Math.round(Math.min(BESIDE.most, Math.max(BESIDE.least, BESIDE.share * all)));
    this.width = Math.max(200, all - beside - 14);
    this.root.style.setProperty("--rw-beside", `${beside}px`);
    while (this.panels.length < panels.length) {
      const view = new PanelView();
      this.panels.push(view);
      this.body.insertBefore(view.root, this.axis);
    }
    for (const view of this.panels.splice(panels.length)) view.root.remove();
    const how = { log: Boolean(this.model.get("logarithmic")) };
    panels.forEach((panel, at) => {
      const lines = this.shown.filter((line) => line.panel === at);
      this.panels[at].draw(panel, lines, this.steps, this.width, { ...how, last: at === panels.length - 1 });
    });
    this.axis.style.width = `${this.width}px`;
    this.point(this.cursor, false);
  }

  /** Reads all lines at the stop nearest to a step; null reads the last values. @param {number | null} step
   * @param {boolean} aloud */
  point(step, aloud) {
    this.cursor = step === null || !this.stops.length ? null : this.stops[nearestAt(this.stops, step)];
    const words = this.panels.map((panel) => panel.point(this.cursor));
    if (aloud) write(this.live, `${words.join(". ")}.`);
  }

  /** Shows some of the steps, or all. @param {[number, number] | null} range */
  look(range) {
    this.zoom = range && range[1] > range[0] ? range : null;
    this.draw();
  }

  /** The step under the pointer, or null beside the plots. @param {PointerEvent} event */
  under(event) {
    const box = this.panels[0]?.svg.getBoundingClientRect();
    const [x, wide] = [event.clientX - (box?.left ?? 0) - LEFT, this.width - LEFT - RIGHT];
    if (!box || x < -DRAG || x > wide + DRAG) return null;
    return this.steps.from + (Math.min(wide, Math.max(0, x)) / wide) * (this.steps.to - this.steps.from);
  }

  /** @param {PointerEvent} event */
  drag(event) {
    const step = this.under(event);
    this.point(step, false);
    const [from, to] = [this.start, step].map((end) => (end === null ? null : this.panels[0]?.across?.(end) ?? null));
    this.mark(from === null || to === null || Math.abs(to - from) < DRAG ? null : [from, to]);
  }

  /** @param {[number, number] | null} range */
  mark(range) {
    this.taken = range !== null;
    for (const panel of this.panels) panel.take(range);
  }

  /** @param {PointerEvent} event */
  drop(event) {
    const [from, to] = [this.start, this.under(event)];
    this.start = null;
    if (this.taken && from !== null && to !== null)
      this.look([Math.max(0, Math.floor(Math.min(from, to))), Math.ceil(Math.max(from, to))]);
    this.mark(null);
  }

  /** A key's step by step. @param {KeyboardEvent} event */
  press(event) {
    if (event.target !== this.body || event.ctrlKey || event.metaKey || event.altKey) return;
    const within = this.stops.filter((step) => step >= this.steps.from && step <= this.steps.to);
    const last = within.length - 1;
    const at = this.cursor === null ? last + 1 : nearestAt(within, this.cursor);
    /** @type {Record<string, number>} */
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - LEAP, PageDown: at + LEAP, Home: 0, End: last };
    if (event.key in moves) this.point(within[Math.max(0, Math.min(last, moves[event.key]))] ?? null, true);
    else if (event.key === "+" || event.key === "-") this.closer(event.key === "+" ? 0.5 : 2);
    else if (event.key === "0") this.look(null);
    else if (event.key === "Escape") this.point(null, false);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Shows so much of the steps, around the cursor. @param {number} share */
  closer(share) {
    const all = this.range.call({ zoom: null }, this.data?.lines ?? []);
    const [from, to] = this.zoom ?? [Math.max(0, all.from), all.to];
    const [middle, wide] = [this.cursor ?? (from + to) / 2, Math.max(2, share * (to - from))];
    const start = Math.max(0, Math.round(middle - wide / 2));
    this.look(wide >= all.to ? null : [start, Math.round(start + wide)]);
  }

  listen() {
    const { body } = this;
    body.addEventListener("keydown", (event) => this.press(event));
    body.addEventListener("pointermove", (event) => this.drag(event));
    body.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.under(event) === null) return;
      this.start = this.under(event);
      body.setPointerCapture(event.pointerId);
    });
    body.addEventListener("pointerup", (event) => this.drop(event));
    body.addEventListener("pointercancel", () => this.mark(this.start = null));
    body.addEventListener("pointerleave", () => this.point(null, false));
    body.addEventListener("dblclick", () => this.look(null));
  }
}
