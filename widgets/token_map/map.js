// @ts-check
/// <reference path="plot.js" />
/// <reference path="legend.js" />
/// <reference path="tip.js" />
// The whole widget: tools, map, legend, and one selection that all of them and Python share.

const PAUSE = 60; // milliseconds between telling Python and drawing what it was told

/** Red, green and blue of a colour of the style sheet, as the host's theme resolves it.
 * @param {HTMLElement} probe @param {string} colour */
function painted(probe, colour) {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  probe.style.backgroundColor = colour;
  if (!pen) return [128, 128, 128];
  pen.fillStyle = getComputedStyle(probe).backgroundColor;
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data.subarray(0, 3)];
}

class TokenMap {
  // JupyterLab would otherwise take the arrow keys for itself.
  root = make("div", "rw-widget rw-token-map", "", { "data-lm-suppress-shortcuts": "true" });
  heading = make("div", "rw-title");
  note = make("div", "rw-note");
  problem = make("div", "rw-problem", "", { role: "alert" });
  select = /** @type {HTMLSelectElement} */ (make("select", "rw-control", "", { name: "colour_by" }));
  modes = /** @type {Record<string, HTMLElement>} */ ({
    lasso: make("button", "rw-button", "Lasso", { type: "button" }),
    move: make("button", "rw-button", "Move", { type: "button" }),
  });
  all = make("button", "rw-button", "Show all", { type: "button" });
  clear = make("button", "rw-button", "Clear selection", { type: "button" });
  stage = make("div", "rw-stage");
  axes = [make("div", "rw-axis rw-axis-x"), make("div", "rw-axis rw-axis-y")];
  status = make("div", "rw-status", "", { role: "status" });
  probe = make("div", "rw-probe");
  tip = new Tip();
  data = /** @type {Data | null} */ (null);
  selected = new Uint32Array();
  fresh = true; // the points are others than those drawn
  frame = 0;
  place = /** @type {[number, number]} */ ([0, 0]);
  hovered = -1;
  timer = 0;

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.plot = new Plot({
      taken: (points, how) => this.send(combined(this.selected, points, how)),
      pointed: (point) => this.point(point),
      failed: (reason) => this.fail(reason),
    });
    this.lasso = new Lasso(this.stage, this.plot.canvas, {
      drawn: (path, how) => this.take(path, how),
      clicked: (how) => this.send(combined(this.selected, this.hovered < 0 ? [] : [this.hovered], how)),
    });
    this.legend = new Legend({
      toggled: (category, alone) => this.toggle(category, alone),
      picked: (category, how) => this.pick(category, how),
    });
    this.build();
    this.listen();
  }

  build() {
    const [tools, label, switches, body] = [make("div", "rw-tools"), make("label", "rw-tool", "Colour by"),
      make("div", "rw-switch", "", { role: "group", "aria-label": "What a drag does" }), make("div", "rw-body")];
    label.append(this.select);
    switches.append(...Object.values(this.modes));
    tools.append(label, switches, this.all, this.clear);
    this.stage.append(this.plot.canvas, this.lasso.root, ...this.axes, this.tip.root);
    this.tip.root.hidden = true;
    body.append(this.stage, this.legend.root);
    this.root.append(this.probe, this.heading, this.note, this.problem, tools, body, this.status, make("div", "rw-hint", HINT));
    this.setMode("lasso");
  }

  listen() {
    const { canvas } = this.plot;
    for (const [mode, button] of Object.entries(this.modes)) button.addEventListener("click", () => this.setMode(mode));
    this.clear.addEventListener("click", () => this.send(new Uint32Array()));
    this.all.addEventListener("click", () => this.showAll());
    this.select.addEventListener("change", () => this.set({ colour_by: this.select.value, hidden: [] }));
    this.stage.addEventListener("pointermove", (event) => {
      const box = this.stage.getBoundingClientRect();
      this.place = [event.clientX - box.left, event.clientY - box.top];
    });
    this.stage.addEventListener("pointerleave", () => this.point(-1));
    // A page that is scrolled past the map should not stop there.
    this.stage.addEventListener("wheel", (event) => {
      if (!canvas.matches(":focus")) event.stopPropagation();
    }, { capture: true });
    this.root.addEventListener("keydown", (event) => this.press(event));
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const used = event.key === "Escape" ? (this.send(new Uint32Array()), true)
      : event.target === this.plot.canvas && this.plot.press(event);
    if (!used) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {string} mode */
  setMode(mode) {
    this.lasso.mode = mode;
    this.plot.canvas.classList.toggle("rw-moves", mode !== "lasso");
    for (const [name, button] of Object.entries(this.modes)) button.setAttribute("aria-pressed", String(name === mode));
  }

  /** @param {Record<string, any>} traits */
  set(traits) {
    for (const [name, value] of Object.entries(traits)) this.model.set(name, value);
    this.model.save_changes();
  }

  /** @param {Uint32Array} selected */
  send(selected) {
    this.set({ selected: selected.buffer });
  }

  /** What a line holds of the points that are drawn. @param {[number, number][]} path @param {string} how */
  take(path, how) {
    if (!this.data) return;
    const [codes, hidden] = [this.data.codes[this.data.by], new Set(this.hidden())];
    this.send(combined(this.selected, this.plot.inside(path, (point) => !hidden.has(codes[point])), how));
  }

  /** @param {number} category @param {boolean} alone */
  toggle(category, alone) {
    const hidden = this.hidden();
    const others = [...this.legend.rows.keys()].filter((each) => each !== category);
    this.set({ hidden: alone ? others
      : hidden.includes(category) ? hidden.filter((each) => each !== category) : [...hidden, category] });
  }

  /** @param {number} category @param {string} how */
  pick(category, how) {
    if (!this.data) return;
    const own = having(this.data.codes[this.data.by], (code) => code === category);
    if (this.hidden().includes(category)) this.toggle(category, false);
    this.send(combined(this.selected, own, how));
  }

  showAll() {
    if (this.hidden().length) this.set({ hidden: [] });
    this.plot.later(() => this.plot.reset());
  }

  /** @returns {number[]} */
  hidden() {
    return this.model.get("hidden");
  }

  /** Draws in the next frame, however many traits have changed by then. @param {boolean} fresh */
  later(fresh) {
    this.fresh ||= fresh;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const data = read(this.model);
    this.data = typeof data === "string" ? null : data;
    this.fail(typeof data === "string" ? data : this.plot.broken ? NO_WEBGL : "");
    this.root.classList.toggle("rw-empty", !this.data);
    if (!this.data) return;
    Object.assign(this.heading, { textContent: this.data.heading, hidden: !this.data.heading });
    Object.assign(this.note, { textContent: this.data.note, hidden: !this.data.note });
    this.axes.forEach((axis, at) => (axis.textContent = this.data?.axes[at] ?? ""));
    this.select.replaceChildren(...this.data.colourings.map((name) => make("option", "", name)));
    this.select.value = this.data.colourings[this.data.by];
    this.legend.draw(this.data);
    this.plot.canvas.setAttribute("aria-label", `Map of ${number(this.data.count)} tokens, coloured by `
      + `${this.data.colourings[this.data.by]}. The legend selects whole categories by the keyboard.`);
    this.drawPoints();
    this.showSelection();
  }

  /** The points, where they can be drawn by now. */
  drawPoints() {
    const { data, plot } = this;
    if (!data) return;
    if (plot.start()) this.fresh = true;
    if (!plot.scatter) return;
    this.paint();
    plot.draw(data, data.colours[data.by], this.fresh).then(() => {
      this.root.dataset.drawn = `${data.count} ${data.colourings[data.by]}`; // for who waits for it
    });
    this.fresh = false;
  }

  paint() {
    this.plot.paint(painted(this.probe, "var(--rw-paper)"));
    this.plot.later(() => this.plot.scatter.redraw());
  }

  /** Everything that says what is selected and hidden. */
  showSelection() {
    const { data } = this;
    this.selected = new Uint32Array(buffer(this.model.get("selected")));
    if (!data) return;
    const [codes, names, hidden] = [data.codes[data.by], data.names[data.by], this.hidden()];
    this.selected = this.selected.filter((point) => point < data.count);
    const own = tally(codes, names.length, this.selected);
    this.legend.show(hidden, this.selected.length ? own : null);
    this.clear.setAttribute("aria-disabled", String(!this.selected.length));
    this.status.textContent = this.summary(own, names, data.count);
    // Python hears of it first: where there is no graphics card, drawing takes the processor from all others.
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.plot.show(
      hidden.length ? having(codes, (code) => !hidden.includes(code)) : null, this.selected), PAUSE);
  }

  /** @param {Uint32Array} own @param {string[]} names @param {number} count */
  summary(own, names, count) {
    if (!this.selected.length) return `Nothing selected of ${number(count)} tokens`;
    const largest = [...own.keys()].filter((category) => own[category]).sort((a, b) => own[b] - own[a]);
    const listed = largest.slice(0, 4).map((category) =>
      `${names[category]} ${Math.round((100 * own[category]) / this.selected.length)} %`);
    const rest = largest.length - listed.length;
    return `${number(this.selected.length)} of ${number(count)} tokens selected: ${listed.join(", ")}`
      + (rest ? ` and ${rest} more` : "");
  }

  /** @param {number} point */
  point(point) {
    this.hovered = point;
    this.tip.show(this.data, point, this.place, this.stage.getBoundingClientRect());
  }

  /** @param {string} reason */
  fail(reason) {
    Object.assign(this.problem, { textContent: reason, hidden: !reason });
    this.root.classList.toggle("rw-undrawn", this.plot.broken);
  }

  stop() {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.plot.stop();
    this.root.remove();
  }
}
