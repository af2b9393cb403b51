// @ts-check
/// <reference path="base.js" />
// A line drawn around points. It lies over the map, which is not painted anew while it grows: where there is no
// graphics card that takes longer than anything else.

const SPACE = "http://www.w3.org/2000/svg";
const [NEARER, LEAST] = [2, 8]; // pixels from one corner to the next, and that make a click a line

class Lasso {
  root = document.createElementNS(SPACE, "svg");
  line = document.createElementNS(SPACE, "polygon");
  path = /** @type {[number, number][] | null} */ (null);
  mode = "lasso";

  /** @param {HTMLElement} stage @param {HTMLElement} canvas
   * @param {{drawn: (path: [number, number][], how: string) => void, clicked: (how: string) => void}} calls */
  constructor(stage, canvas, calls) {
    this.calls = calls;
    this.root.setAttribute("class", "rw-lasso");
    this.root.append(this.line);
    canvas.addEventListener("pointerdown", (event) => this.start(event, canvas));
    canvas.addEventListener("pointermove", (event) => this.extend(event));
    canvas.addEventListener("pointerup", (event) => this.end(event));
    canvas.addEventListener("pointercancel", () => this.clear());
    // What belongs to the line is not for the map below, which would move or take points by itself.
    for (const name of ["mousedown", "mousemove", "click"])
      stage.addEventListener(name, (event) => this.own(/** @type {MouseEvent} */ (event)) && event.stopPropagation(),
        { capture: true });
  }

  /** @param {MouseEvent} event */
  own(event) {
    return event.type === "mousemove" ? this.path !== null : this.mode === "lasso" || event.shiftKey;
  }

  /** @param {PointerEvent} event @param {HTMLElement} canvas */
  start(event, canvas) {
    if (event.button || !this.own(event)) return;
    canvas.setPointerCapture(event.pointerId);
    this.path = [[event.offsetX, event.offsetY]];
  }

  /** @param {PointerEvent} event */
  extend(event) {
    if (!this.path) return;
    const [x, y] = this.path[this.path.length - 1];
    if (Math.hypot(event.offsetX - x, event.offsetY - y) < NEARER) return;
    this.path.push([event.offsetX, event.offsetY]);
    this.line.setAttribute("points", this.path.map((corner) => corner.join()).join(" "));
  }

  /** @param {PointerEvent} event */
  end(event) {
    const { path } = this;
    if (!path) return;
    this.clear();
    path.push([event.offsetX, event.offsetY]);
    const far = Math.max(...path.map(([x, y]) => Math.hypot(x - path[0][0], y - path[0][1])));
    if (far < LEAST) this.calls.clicked(asked(event));
    else this.calls.drawn(path, asked(event));
  }

  clear() {
    this.path = null;
    this.line.setAttribute("points", "");
  }
}

/** Numbers of the points inside a polygon: a ray to the right of them crosses its edges an odd number of times.
 * @param {{x: Float32Array, y: Float32Array}} places @param {[number, number][]} polygon
 * @param {(point: number) => boolean} shown */
function within({ x, y }, polygon, shown) {
  const [left, right] = endsOf(polygon.map(([px]) => px));
  const [low, high] = endsOf(polygon.map(([, py]) => py));
  const found = [];
  for (let at = 0; at < x.length; at += 1) {
    const [px, py] = [x[at], y[at]];
    if (px < left || px > right || py < low || py > high || !shown(at)) continue;
    let odd = false;
    for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i, i += 1) {
      const [[x0, y0], [x1, y1]] = [polygon[i], polygon[j]];
      if (y0 > py !== y1 > py && px < x0 + ((py - y0) * (x1 - x0)) / (y1 - y0)) odd = !odd;
    }
    if (odd) found.push(at);
  }
  return found;
}
