// @ts-check
/// <reference path="lasso.js" />
// The points, drawn by regl-scatterplot in a canvas of their own, and what a person does in it.

const ReglScatterplotOf = /** @type {any} */ (ReglScatterplot); // the file before the others
const [ROOM, STEP, ZOOM] = [1.06, 0.1, 1.3]; // around all points; of a view by an arrow key; by a key

/** Size in pixels and opacity that tell so many points apart. @param {number} count @returns {[number, number]} */
function pointsOf(count) {
  const sizes = /** @type {[number, number, number][]} */ ([[1000, 7, 0.9], [5000, 5, 0.8], [25000, 3.5, 0.7]]);
  const fitting = sizes.find(([most]) => count <= most) ?? [0, 2.5, 0.6];
  return [fitting[1], fitting[2]];
}

class Plot {
  canvas = /** @type {HTMLCanvasElement} */ (make("canvas", "rw-canvas", "", { tabindex: "0", role: "application" }));
  scatter = /** @type {any} */ (null);
  renderer = /** @type {any} */ (null);
  held = "replace";
  kept = { x: new Float32Array(), y: new Float32Array() }; // where the points are on the map
  work = Promise.resolve();
  broken = false; // no plot can be made in this browser
  home = { x: -1, y: -1, width: 2, height: 2 };

  /** @param {{taken: (points: number[], how: string) => void, pointed: (point: number) => void,
   *   failed: (reason: string) => void}} calls */
  constructor(calls) {
    this.calls = calls;
    this.canvas.addEventListener("pointerup", (event) => (this.held = asked(event)));
  }

  /** Makes the plot, once its canvas has a size; whether it was made now. */
  start() {
    if (this.scatter || this.broken || !this.canvas.clientWidth) return false;
    try {
      // The library's own would be as large as the window.
      this.renderer = ReglScatterplotOf.createRenderer({ canvas: document.createElement("canvas") });
      this.scatter = ReglScatterplotOf.default({
        renderer: this.renderer, canvas: this.canvas, width: "auto", height: "auto", colorBy: "valueA",
        pointSizeSelected: 0, pointOutlineWidth: 0, opacityInactiveMax: 0.12, lassoInitiator: false,
        lassoInitiatorParentElement: this.canvas.parentElement, deselectOnEscape: false, actionKeyMap: {},
        lassoLongPressIndicatorParentElement: this.canvas.parentElement, spatialIndexUseWorker: false,
      });
    } catch {
      this.broken = true;
      this.calls.failed(NO_WEBGL);
      return false;
    }
    this.renderer.canvas.addEventListener("webglcontextlost", () => this.scatter && this.calls.failed(LOST));
    this.subscribe();
    this.resize();
    return true;
  }

  /** Follows the size of the canvas, if it has one. */
  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!this.scatter || !clientWidth) return;
    this.renderer.resize(clientWidth, clientHeight);
    this.renderer.refresh();
    this.scatter.redraw();
  }

  subscribe() {
    const { scatter } = this;
    scatter.subscribe("select", (/** @type {{points: number[]}} */ { points }) => this.calls.taken(points, this.held));
    scatter.subscribe("deselect", () => this.calls.taken([], "replace"));
    scatter.subscribe("pointover", (/** @type {number} */ point) => this.calls.pointed(point));
    scatter.subscribe("pointout", () => this.calls.pointed(-1));
  }

  /** Numbers of the points inside a line over the canvas. @param {[number, number][]} path in pixels
   * @param {(point: number) => boolean} shown */
  inside(path, shown) {
    if (!this.scatter) return [];
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const [[x, y], distance] = [this.scatter.get("cameraTarget"), this.scatter.get("cameraDistance")];
    const pixel = (2 * distance) / height;
    return within(this.kept, path.map(([right, down]) =>
      [x + (right - width / 2) * pixel, y - (down - height / 2) * pixel]), shown);
  }

  /** One thing after the other: the library refuses to draw while it draws. @param {() => Promise<void> | void} next */
  later(next) {
    this.work = this.work.then(() => (this.scatter ? next() : undefined))
      .catch((error) => this.calls.failed(`The map could not be drawn: ${error.message}`));
    return this.work;
  }

  /** The points of the data in their colours; all of them in view, where they are others than before.
   * @param {Data} data @param {string[]} colours @param {boolean} fresh */
  draw({ x, y, codes, by, count }, colours, fresh) {
    return this.later(async () => {
      const { scatter } = this;
      const placed = fresh ? this.placed(x, y) : null;
      const [pointSize, opacity] = pointsOf(count);
      scatter.set({ pointColor: colours, pointColorActive: colours, pointColorHover: colours, pointSize, opacity });
      if (placed) this.kept = placed;
      const spatialIndex = fresh ? undefined : scatter.get("spatialIndex");
      await scatter.draw({ ...this.kept, valueA: codes[by] }, { zDataType: "categorical", spatialIndex });
      if (placed) await this.reset();
    });
  }

  /** Coordinates around 0, on one scale for both axes, and the rectangle they fill.
   * @param {Float32Array} x @param {Float32Array} y */
  placed(x, y) {
    const ends = [x, y].map(endsOf);
    const scale = 2 / (Math.max(...ends.map(([low, high]) => high - low)) || 1);
    const [width, height] = ends.map(([low, high]) => Math.max((high - low) * scale, 0.02) * ROOM);
    this.home = { x: -width / 2, y: -height / 2, width, height };
    const [middleX, middleY] = ends.map(([low, high]) => (low + high) / 2);
    return { x: x.map((value) => (value - middleX) * scale), y: y.map((value) => (value - middleY) * scale) };
  }

  reset() {
    return this.scatter.zoomToArea(this.home);
  }

  /** What is drawn, and what of it stands out. @param {Uint32Array | null} shown null for all
   * @param {Uint32Array} selected */
  show(shown, selected) {
    return this.later(() => {
      const quiet = { preventEvent: true };
      if (shown) this.scatter.filter(Array.from(shown), quiet);
      else if (this.scatter.get("isPointsFiltered")) this.scatter.unfilter(quiet);
      if (selected.length) this.scatter.select(Array.from(selected), quiet);
      else this.scatter.deselect(quiet);
    });
  }

  /** @param {number[]} paper red, green and blue up to 255 */
  paint(paper) {
    this.scatter?.set({ backgroundColor: [...paper.map((value) => value / 255), 1] });
  }

  /** Moves by shares of the view, and makes it larger. @param {number} right @param {number} up @param {number} by */
  move(right, up, by) {
    if (!this.scatter) return;
    const [[x, y], distance] = [this.scatter.get("cameraTarget"), this.scatter.get("cameraDistance")];
    this.scatter.zoomToLocation([x + 2 * STEP * right * distance, y + 2 * STEP * up * distance], distance / by);
  }

  /** Whether a key was for the map. @param {KeyboardEvent} event */
  press({ key }) {
    /** @type {Record<string, [number, number, number]>} */
    const moves = { ArrowLeft: [-1, 0, 1], ArrowRight: [1, 0, 1], ArrowUp: [0, 1, 1], ArrowDown: [0, -1, 1],
      "+": [0, 0, ZOOM], "=": [0, 0, ZOOM], "-": [0, 0, 1 / ZOOM] };
    if (key === "0" && this.scatter) this.reset();
    else if (moves[key]) this.move(...moves[key]);
    return key === "0" || key in moves;
  }

  stop() {
    if (!this.scatter) return;
    const { scatter, renderer } = this;
    const context = renderer.canvas.getContext("webgl");
    this.scatter = null;
    scatter.destroy();
    renderer.destroy();
    context?.getExtension("WEBGL_lose_context")?.loseContext(); // a page has a dozen at most
  }
}
