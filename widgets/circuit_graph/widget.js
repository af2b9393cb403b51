// @ts-check
/// <reference path="../shared.js" />
// The circuit of a decoder: layers upwards, heads across, and the strongest edges from what writes to what reads.

/**
 * @typedef {{name: string, layer: number, at: number, type: string, into: Edge[], out: Edge[]}} Node
 *   `layer` and `at` are what `selected` says; `into` and `out` are the edges shown, the strongest first.
 * @typedef {{from: number, to: number, end: number, kind: number, score: number, name: string, curve: number[]}} Edge
 *   Leads from a node to all from `to` to `end`: one, or the heads that share a key-value head. `curve` is its four
 *   points, x and y in turns.
 * @typedef {{layers: number, heads: number, nodes: Node[], edges: Edge[], largest: number, quantity: string}} Data
 *   Nodes come as the input, each layer's heads and MLP, and the logits.
 * @typedef {{x: number[], y: number[], width: number, height: number, row: number, space: number,
 *   wide: boolean}} Layout
 */

const DATA_TRAITS = ["shape", "kv_heads", "edges", "scores", "quantity", "show_slider"];
const READERS = ["q", "k", "v", "MLP or logits"];
const [MLP, LOGITS] = [3, 4]; // readers that are no head
const DASHES = [[], [7, 4], [1.5, 3.5], []]; // solid, dashed, dotted, and solid but thin
// In pixels: room around the heads, the widest and narrowest, and half the height of a named node and of a dot.
const [LEFT, RIGHT, TOP, BOTTOM, SIDE, NARROWEST, PILL, DOT] = [44, 84, 18, 44, 110, 480, 10, 4];
const NEAR = 6; // pixels between the pointer and an edge that it means
const STEPS = 16; // straight pieces that stand for a curve when the pointer looks for one
const LISTED = 5; // edges that the lines below name
const HINT = "Click a node to select it, or use the arrow keys and Enter; Escape clears. Point at an edge to read it.";

/** @param {number} layers @param {number} heads @returns {Node[]} */
function makeNodes(layers, heads) {
  const node = (/** @type {string} */ name, /** @type {number} */ layer, at = 0, type = "end") =>
    ({ name, layer, at, type, into: [], out: [] });
  const inside = Array.from({ length: layers }, (_, layer) => [
    ...Array.from({ length: heads }, (_, head) => node(`L${layer}H${head}`, layer, head, "head")),
    node(`MLP${layer}`, layer, -1, "mlp"),
  ]);
  return [node("input", -1), ...inside.flat(), node("logits", layers)];
}

/** The traits as nodes and edges, or what does not fit together yet. @param {Model} model @returns {Data | string} */
function read(model) {
  const [[layers, heads], raw, numbers] = [model.get("shape"), buffer(model.get("edges")), buffer(model.get("scores"))];
  if (!layers || !heads) return "No circuit to show.";
  const shared = heads / (model.get("kv_heads") || heads);
  if (!Number.isInteger(shared)) return `kv_heads is ${model.get("kv_heads")}, which does not divide ${heads} heads`;
  if (numbers.byteLength % 4 || raw.byteLength !== 5 * numbers.byteLength)
    return `edges has ${raw.byteLength} bytes and scores ${numbers.byteLength}, an edge needs 20 and 4`;
  const [table, scores, nodes] = [new Int32Array(raw), new Float32Array(numbers), makeNodes(layers, heads)];
  const index = (/** @type {number} */ layer, /** @type {number} */ at) =>
    layer < 0 ? 0 : 1 + layer * (heads + 1) + (at < 0 ? heads : at);
  const edges = /** @type {Edge[]} */ ([]);
  for (const [row, score] of scores.entries()) {
    const [writer, source, layer, at, kind] = table.subarray(5 * row, 5 * row + 5);
    const [from, several] = [index(writer, source), kind === 1 || kind === 2 ? shared : 1];
    const to = kind === LOGITS ? nodes.length - 1 : index(layer, kind === MLP ? -1 : at * several);
    if (kind < 0 || kind > LOGITS || !nodes[from] || !nodes[to + several - 1] || from >= to)
      return `edge ${row} does not lead upwards between nodes of ${layers} layers and ${heads} heads`;
    const reader = (several > 1 ? `L${layer}KV${at}` : nodes[to].name) + (kind < MLP ? `.${READERS[kind]}` : "");
    const name = `${nodes[from].name} → ${reader}`;
    edges.push({ from, to, end: to + several - 1, kind, score, name, curve: [] });
  }
  return { layers, heads, nodes, edges, largest: Math.abs(scores[0] ?? 0), quantity: model.get("quantity") };
}

/** A signed number with the digits that the largest one calls for. @param {number} value @param {number} largest */
function show(value, largest) {
  const sign = value > 0 ? "+" : "";
  if (largest < 1e-6 || largest >= 1e6) return sign + value.toExponential(1);
  const digits = largest >= 100 ? 1 : largest >= 10 ? 2 : largest >= 0.1 ? 3 : 2 - Math.floor(Math.log10(largest));
  return sign + value.toFixed(digits);
}

/** @param {number} number @param {string} [unit] */
function amount(number, unit = "") {
  return number.toLocaleString("en") + (unit && ` ${unit}${number === 1 ? "" : "s"}`);
}

/** @param {Node} node */
function describe({ name, type, into, out }) {
  if (name === "input") return `${name}, ${amount(out.length, "edge")} out`;
  const text = `${type === "head" ? "head " : ""}${name}, ${amount(into.length, "edge")} in`;
  return name === "logits" ? text : `${text}, ${amount(out.length)} out`;
}

/** Where each node goes for the width at hand. @param {Data} data @param {number} room @returns {Layout} */
function place({ layers, heads, nodes }, room) {
  const width = Math.max(NARROWEST, Math.min(room, LEFT + RIGHT + SIDE * heads));
  const [space, row] = [(width - LEFT - RIGHT) / heads, Math.max(26, Math.min(96, 620 / (layers + 1)))];
  const end = Math.max(row, 56); // room between the input, the layers and the logits
  const [ground, middle] = [TOP + end + (layers - 0.6) * row, LEFT + (heads * space) / 2];
  const x = nodes.map(({ at, type }) => (type === "end" ? middle : at < 0 ? width - 38 : LEFT + (at + 0.5) * space));
  const y = nodes.map(({ layer, at }) => ground - (layer + (at < 0 ? 0.4 : 0)) * row);
  [y[0], y[y.length - 1]] = [ground + end, TOP];
  const wide = space >= 54 && row >= 38;
  const height = Math.round(ground + end + BOTTOM);
  return { x: x.map(Math.round), y: y.map(Math.round), width, height, row, space, wide };
}

/** The curve of an edge: from the top of its writer to the bottom of its reader.
 * @param {Edge} edge @param {Node[]} nodes @param {Layout} layout */
function bend({ from, to, end, kind }, nodes, { x, y, row, space, wide }) {
  const half = (/** @type {number} */ node) => (wide || nodes[node].type === "end" ? PILL : DOT);
  // q, k and v enter a head side by side.
  const apart = kind < MLP ? (kind - 1) * (wide ? 10 : 3) : 0;
  const [x0, x1] = [x[from], (x[to] + x[end]) / 2 + apart];
  const [y0, y1] = [y[from] - half(from), y[to] + half(to)];
  if (nodes[from].layer === nodes[to].layer) {
    // Within a layer: up, and along into the side of the MLP.
    const stop = x1 - (wide ? 22 : DOT + 1);
    return [x0, y0, x0, y[to], (x0 + stop) / 2, y[to], stop, y[to]];
  }
  // An edge that rises past other nodes of its column goes around them.
  const steep = Math.max(0, 1 - Math.abs(x1 - x0) / space) * Math.min(1, Math.max(0, (y0 - y1) / row - 1));
  const [aside, rise] = [steep * space * 0.62 * (x1 < x0 ? -1 : 1), (y0 - y1) / 2];
  return [x0, y0, x0 + aside, y0 - rise, x1 + aside, y1 + rise, x1, y1];
}

/** How far a point is from a curve; Infinity where it is surely not near.
 * @param {number[]} curve @param {number} x @param {number} y */
function distance([x0, y0, x1, y1, x2, y2, x3, y3], x, y) {
  if (Math.min(x0, x1, x2, x3) > x + NEAR || Math.max(x0, x1, x2, x3) < x - NEAR) return Infinity;
  if (Math.min(y0, y1, y2, y3) > y + NEAR || Math.max(y0, y1, y2, y3) < y - NEAR) return Infinity;
  let [least, px, py] = [Infinity, x0, y0];
  for (let step = 1; step <= STEPS; step++) {
    const t = step / STEPS;
    const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
    const [nx, ny] = [a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3];
    const [dx, dy] = [nx - px, ny - py];
    const along = Math.max(0, Math.min(1, ((x - px) * dx + (y - py) * dy) / (dx * dx + dy * dy || 1)));
    least = Math.min(least, Math.hypot(x - px - along * dx, y - py - along * dy));
    [px, py] = [nx, ny];
  }
  return least;
}

/** Strokes edges, the weakest first.
 * @param {CanvasRenderingContext2D} pen @param {Edge[]} edges the strongest first @param {string[]} colours two a kind
 * @param {(score: number) => [number, number]} look opacity and width for a score */
function strokeAll(pen, edges, colours, look) {
  for (const { kind, score, curve: c } of [...edges].reverse()) {
    const [opacity, width] = look(Math.abs(score));
    pen.globalAlpha = opacity;
    pen.lineWidth = kind < MLP ? width : 0.75 * width;
    pen.strokeStyle = colours[2 * Math.min(kind, MLP) + Number(score < 0)];
    pen.setLineDash(DASHES[kind] ?? []);
    pen.beginPath();
    pen.moveTo(c[0], c[1]);
    pen.bezierCurveTo(c[2], c[3], c[4], c[5], c[6], c[7]);
    pen.stroke();
  }
}

/** Counts the slider stops at: one by one at first, then by about a twentieth. @param {number} count */
function stopsUpTo(count) {
  const stops = [];
  for (let stop = 1; stop < count; stop = Math.max(stop + 1, Math.round(stop * 1.05))) stops.push(stop);
  return [...stops, count];
}

/** @param {EventTarget | null} target */
function nodeAt(target) {
  const node = target instanceof Element ? target.closest(".rw-node") : null;
  return node instanceof HTMLElement ? Number(node.dataset.node) : -1;
}

/** What signs, dashes and widths mean; the canvas takes its colours from here. @param {Data} data */
function makeLegend({ quantity, largest }) {
  const signs = ["positive", "negative"];
  const entry = (/** @type {Element[]} */ samples, /** @type {string} */ text) => {
    const box = make("span", "rw-entry");
    box.append(...samples, make("span", "", text));
    return box;
  };
  const kinds = READERS.map((reader, kind) => entry(signs.map((sign) => {
    const width = { "stroke-width": kind < MLP ? 2.5 : 1.5, "stroke-dasharray": DASHES[kind].join(" ") || "none" };
    const sample = draw("svg", `rw-line rw-${sign}`, { "data-kind": reader, width: 30, height: 10 });
    sample.append(draw("line", "rw-stroke", { x1: 0, x2: 30, y1: 5, y2: 5, ...width }));
    return sample;
  }), `into ${reader}`));
  const box = make("div", "rw-legend");
  if (quantity) box.append(make("span", "rw-quantity", quantity));
  box.append(...signs.map((sign) => entry([make("span", `rw-swatch rw-${sign}`)], sign)), ...kinds);
  const size = `wider and stronger: larger score, up to ${show(largest, largest).replace("+", "")}`;
  if (largest) box.append(make("span", "rw-size", size));
  return box;
}

class Circuit {
  // JupyterLab would otherwise take the arrow keys for itself.
  root = make("div", "rw-widget rw-circuit", "", { "data-lm-suppress-shortcuts": "true" });
  stage = make("div", "rw-stage");
  canvas = /** @type {HTMLCanvasElement} */ (make("canvas", "rw-edges", "", { "aria-hidden": "true" }));
  hot = draw("path", "rw-hot"); // the edge under the pointer
  over = draw("svg", "rw-over", { "aria-hidden": "true" });
  slider = /** @type {HTMLInputElement} */ (make("input", "rw-range", "", { type: "range", min: "0", step: "1" }));
  count = make("span", "rw-count");
  status = make("div", "rw-chosen", "", { role: "status" });
  tip = make("div", "rw-tip", "", { role: "tooltip" });
  data = /** @type {Data} */ ({});
  layout = /** @type {Layout} */ ({});
  nodes = /** @type {HTMLElement[]} */ ([]);
  shown = /** @type {Edge[]} */ ([]); // the strongest
  lit = /** @type {Edge[]} */ ([]); // those of the selected node, or all that are shown
  stops = /** @type {number[]} */ ([]); // of the slider
  chosen = -1; // node
  stop = 0; // the node that the Tab key reaches
  column = 0; // where the keyboard comes down from the logits or up from the input
  width = 0; // that the layout is for
  stale = false;
  frame = 0; // asked for, to paint
  hover = 0; // asked for, to look under the pointer

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.over.append(this.hot);
  }

  /** Builds everything anew and keeps the keyboard where it was. */
  draw() {
    const [data, focused] = [read(this.model), this.focusedNode()];
    Object.assign(this, { nodes: [], stale: false });
    if (typeof data === "string") return this.root.replaceChildren(make("div", "rw-problem", data));
    const [last, scroll, foot] = [data.nodes.length - 1, make("div", "rw-scroll"), make("div", "rw-foot")];
    const slider = make("label", "rw-slider", "Edges shown");
    this.data = data;
    this.stop = Math.min(this.stop, last);
    this.column = Math.min(this.column || (data.heads - 1) >> 1, data.heads);
    this.stops = stopsUpTo(data.edges.length);
    this.slider.max = String(this.stops.length - 1);
    this.stage.replaceChildren(this.canvas, this.over, this.makeGrid());
    scroll.append(this.stage);
    slider.append(this.slider);
    foot.append(...(this.model.get("show_slider") ? [slider] : []), this.count);
    this.root.replaceChildren(scroll, foot, makeLegend(data), this.status, this.tip);
    this.fit();
    this.showStrongest(this.model.get("limit"));
    if (focused >= 0) this.nodes[Math.min(focused, last)].focus({ preventScroll: true });
  }

  /** The rows of nodes, the logits first. */
  makeGrid() {
    const { nodes, quantity } = this.data;
    const label = ["Circuit", quantity, "layers upwards, heads across"].filter(Boolean).join(", ");
    const grid = make("div", "rw-grid", "", { role: "grid", "aria-label": label });
    const rows = /** @type {HTMLElement[]} */ ([]);
    nodes.forEach(({ name, layer, type }, index) => {
      const attributes = { role: "gridcell", tabindex: "-1", "data-node": String(index) };
      const node = make("div", `rw-node rw-${type}`, "", attributes);
      node.append(make("span", "rw-text", name));
      (rows[layer + 1] ??= make("div", "rw-row", "", { role: "row" })).append(node);
      this.nodes.push(node);
    });
    grid.append(...rows.reverse());
    return grid;
  }

  /** Puts the nodes where they belong for the width at hand. */
  fit() {
    const { data, root, nodes, stage } = this;
    if (!nodes.length) return;
    this.width = root.clientWidth;
    const { x, y, width, height, row, space, wide } = (this.layout = place(data, this.width - 4 || 640));
    for (const edge of data.edges) edge.curve = bend(edge, data.nodes, this.layout);
    root.classList.toggle("rw-wide", wide);
    root.style.setProperty("--rw-hit", `${Math.max(5, Math.min(18, space - 1, row - 6))}px`);
    Object.assign(stage.style, { width: `${width}px`, height: `${height}px` });
    nodes.forEach((node, index) => Object.assign(node.style, { left: `${x[index]}px`, top: `${y[index]}px` }));
    for (const number of stage.querySelectorAll(".rw-number")) number.remove();
    const step = Math.ceil(24 / space);
    data.nodes.forEach(({ layer, at, type }, index) => {
      const [beside, below] = [at === 0 && type === "head", layer === 0 && at % step < 1];
      if (beside) this.addNumber("layer", `L${layer}`, 26, y[index]);
      if (below) this.addNumber("head", at < 0 ? "MLP" : `H${at}`, x[index], height - 12);
    });
    this.point(-1);
    this.ask();
  }

  /** @param {string} name @param {string} text @param {number} x @param {number} y */
  addNumber(name, text, x, y) {
    const number = make("div", `rw-number rw-${name}-number`, text, { "aria-hidden": "true" });
    Object.assign(number.style, { left: `${x}px`, top: `${y}px` });
    this.stage.prepend(number);
  }

  /** @param {number} limit how many edges, or 0 for all */
  showStrongest(limit) {
    const { data, stops, slider, count, nodes } = this;
    if (!nodes.length) return;
    this.shown = data.edges.slice(0, limit || undefined);
    count.textContent = `${amount(this.shown.length)} of ${amount(data.edges.length, "edge")}`;
    slider.value = String(stops.findIndex((stop) => stop >= this.shown.length));
    slider.setAttribute("aria-valuetext", count.textContent);
    for (const node of data.nodes) Object.assign(node, { into: [], out: [] });
    for (const edge of this.shown) {
      data.nodes[edge.from].out.push(edge);
      for (let node = edge.to; node <= edge.end; node++) data.nodes[node].into.push(edge);
    }
    data.nodes.forEach((node, index) => {
      nodes[index].classList.toggle("rw-strong", node.into.length + node.out.length > 0);
      nodes[index].setAttribute("aria-label", describe(node));
    });
    this.showSelected();
  }

  /** Brings out the selected node and says its edges in words. */
  showSelected() {
    const { data, nodes, status, shown } = this;
    if (!nodes.length) return;
    const [layer, at] = this.model.get("selected");
    const chosen = data.nodes.findIndex((node) => node.layer === layer && node.at === at);
    const { into, out } = data.nodes[chosen] ?? { into: [], out: [] };
    const near = new Set([chosen, ...into.map(({ from }) => from)]);
    for (const { to, end } of out) for (let node = to; node <= end; node++) near.add(node);
    this.chosen = chosen;
    this.lit = chosen < 0 ? shown : [...out, ...into];
    nodes.forEach((node, index) => {
      node.setAttribute("aria-selected", String(index === chosen));
      node.classList.toggle("rw-away", chosen >= 0 && !near.has(index));
    });
    status.classList.toggle("rw-hint", chosen < 0);
    status.textContent = HINT;
    if (chosen >= 0) status.replaceChildren(...this.makeLines(data.nodes[chosen]));
    this.moveStop(chosen >= 0 ? chosen : this.stop);
    this.point(-1);
    this.ask();
  }

  /** A node in words, and its strongest edges in and out. @param {Node} node */
  makeLines(node) {
    const { shown, data } = this;
    const among = shown.length < data.edges.length ? `, among the ${amount(shown.length)} shown` : "";
    const lines = [node.into, node.out].filter((edges) => edges.length).map((edges) => {
      const listed = edges.slice(0, LISTED).map(({ name, score }) => `${name} ${show(score, data.largest)}`);
      const more = edges.length > LISTED ? `, and ${amount(edges.length - LISTED)} more` : "";
      return make("span", "", `${edges === node.into ? "In" : "Out"}: ${listed.join(", ")}${more}`);
    });
    return [make("strong", "", describe(node) + among), ...lines];
  }

  /** One painting for all that one message changes; from scratch when data did. @param {boolean} [afresh] */
  ask(afresh = false) {
    this.stale ||= afresh;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.stale) this.draw(); // asks again
      else this.paint();
    });
  }

  /** Draws the edges, those of the selected node above all others. */
  paint() {
    const { canvas, layout, data, chosen, shown, lit } = this;
    const [pen, ratio] = [canvas.getContext("2d"), window.devicePixelRatio || 1];
    if (!pen || !this.nodes.length) return;
    Object.assign(canvas, { width: Math.round(layout.width * ratio), height: Math.round(layout.height * ratio) });
    pen.scale(ratio, ratio);
    const colours = [...this.root.querySelectorAll(".rw-line")].map((line) => getComputedStyle(line).color);
    // Many edges must be fainter than few, or the weak ones would hide the strong ones. Hairlines draw much faster.
    const faint = chosen < 0 ? Math.max(0.1, Math.min(0.4, 6 / Math.sqrt(shown.length))) : 0.7;
    const thin = lit.length > 2000 ? 1 / ratio : chosen < 0 ? 1 : 1.5;
    if (chosen >= 0) strokeAll(pen, shown, colours, () => [0.05, 1 / ratio]);
    strokeAll(pen, lit, colours, (score) => {
      const share = score / data.largest || 0;
      return [faint + (0.95 - faint) * share, Math.max(thin, 3.4 * share)];
    });
  }

  /** The edge that is lit near a point of the drawing. @param {number} x @param {number} y */
  edgeNear(x, y) {
    let [least, found] = [NEAR, /** @type {Edge | undefined} */ (undefined)];
    for (const edge of this.lit) {
      const away = distance(edge.curve, x, y);
      // Of edges about as near, the strongest.
      if (away < least - (found ? 0.75 : 0)) [least, found] = [away, edge];
    }
    return found;
  }

  /** Tells of an edge beside the pointer, or else of a node; -1 and no edge hide the tooltip.
   * @param {number} node @param {Edge} [edge] @param {number} [x] @param {number} [y] */
  point(node, edge, x = 0, y = 0) {
    const { tip, hot, root, data, nodes } = this;
    const [p0, p1, ...rest] = edge?.curve ?? [];
    hot.setAttribute("d", edge ? `M${p0} ${p1}C${rest.join(" ")}` : "");
    hot.setAttribute("stroke-dasharray", DASHES[edge?.kind ?? 0]?.join(" ") || "none");
    tip.hidden = !edge && !nodes[node];
    if (tip.hidden) return;
    tip.replaceChildren(make("strong", "", edge?.name ?? nodes[node].getAttribute("aria-label") ?? ""));
    if (edge) tip.append(` ${show(edge.score, data.largest)}`);
    const [box, cell] = [root.getBoundingClientRect(), nodes[node]?.getBoundingClientRect()];
    const [left, top] = [(edge ? x : cell.right) - box.left + 12, (edge ? y : cell.top) - box.top + 12];
    tip.style.left = `${Math.max(0, left + tip.offsetWidth <= box.width ? left : left - tip.offsetWidth - 24)}px`;
    tip.style.top = `${Math.max(0, Math.min(top, box.height - tip.offsetHeight))}px`;
  }

  /** Looks for what is under the pointer, once a frame. @param {PointerEvent} event */
  track({ target, clientX, clientY }) {
    cancelAnimationFrame(this.hover);
    this.hover = requestAnimationFrame(() => {
      const [node, box] = [nodeAt(target), this.canvas.getBoundingClientRect()];
      const inside = node < 0 && target instanceof Element && this.stage.contains(target);
      this.point(node, inside ? this.edgeNear(clientX - box.left, clientY - box.top) : undefined, clientX, clientY);
    });
  }

  focusedNode() {
    const { activeElement } = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    return this.root.contains(activeElement) ? nodeAt(activeElement) : -1;
  }

  /** @param {number} index */
  moveStop(index) {
    this.nodes[this.stop].tabIndex = -1;
    this.nodes[index].tabIndex = 0;
    this.stop = index;
    if (this.data.nodes[index].type !== "end") this.column = (index - 1) % (this.data.heads + 1);
  }

  /** @param {string} name @param {any} value */
  send(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  /** @param {number} index node, or -1 to clear */
  select(index) {
    const { layer, at } = this.data.nodes[index] ?? {};
    this.send("selected", index < 0 ? [] : [layer, at]);
    this.showSelected();
  }

  /** The node that a key leads to, or -1 when the key is not ours. @param {number} node @param {KeyboardEvent} event */
  neighbour(node, { key, ctrlKey, metaKey, altKey }) {
    const [row, last] = [this.data.heads + 1, this.nodes.length - 1];
    const end = node === 0 || node === last;
    const [first, final] = end ? [node, node] : [node - ((node - 1) % row), node - ((node - 1) % row) + row - 1];
    /** @type {Record<string, number>} */
    const moves = {
      ArrowLeft: Math.max(node - 1, first), ArrowRight: Math.min(node + 1, final), Home: first, End: final,
      ArrowUp: node === 0 ? 1 + this.column : Math.min(node + row, last),
      ArrowDown: node === last ? last - row + this.column : Math.max(node - row, 0),
    };
    return ctrlKey || metaKey || altKey ? -1 : moves[key] ?? -1;
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const node = nodeAt(event.target);
    if (node < 0) return;
    const next = this.neighbour(node, event);
    if (next >= 0) this.nodes[next].focus();
    else if (event.key === "Enter" || event.key === " ") this.select(node);
    else if (event.key === "Escape") this.select(-1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** What the slider says, as `limit` says it. */
  sliderLimit() {
    const count = this.stops[Number(this.slider.value)];
    return count === this.data.edges.length ? 0 : count;
  }

  listen() {
    const { root, slider } = this;
    // Python hears of the slider when it rests.
    slider.addEventListener("input", () => this.showStrongest(this.sliderLimit()));
    slider.addEventListener("change", () => this.send("limit", this.sliderLimit()));
    root.addEventListener("keydown", (event) => this.press(event));
    root.addEventListener("click", ({ target }) => {
      const node = nodeAt(target);
      if (node >= 0) this.select(node === this.chosen ? -1 : node);
    });
    root.addEventListener("pointermove", (event) => this.track(event));
    root.addEventListener("pointerleave", () => {
      cancelAnimationFrame(this.hover);
      this.point(this.focusedNode());
    });
    root.addEventListener("focusout", () => this.point(-1));
    root.addEventListener("focusin", ({ target }) => {
      if (nodeAt(target) >= 0) this.moveStop(nodeAt(target));
      this.point(nodeAt(target));
    });
  }
}

/** @param {{model: Model, el: HTMLElement}} host */
function render({ model, el }) {
  const circuit = new Circuit(model);
  /** @type {Record<string, () => void>} */
  const calls = { selected: () => circuit.showSelected(), limit: () => circuit.showStrongest(model.get("limit")) };
  for (const name of DATA_TRAITS) calls[name] = () => circuit.ask(true);
  const observer = new ResizeObserver(() => circuit.root.clientWidth !== circuit.width && circuit.fit());
  const unwatch = onTheme(circuit.root, () => circuit.ask());
  el.append(circuit.root);
  circuit.listen();
  circuit.draw();
  for (const [name, call] of Object.entries(calls)) model.on(`change:${name}`, call);
  observer.observe(circuit.root);
  return () => {
    observer.disconnect();
    unwatch();
    for (const frame of [circuit.frame, circuit.hover]) cancelAnimationFrame(frame);
    for (const [name, call] of Object.entries(calls)) model.off(`change:${name}`, call);
    circuit.root.remove();
  };
}

export default { render };
