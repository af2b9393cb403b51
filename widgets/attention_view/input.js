// @ts-check
/// <reference path="base.js" />
/// <reference path="viewer.js" />
// Keys and pointer.

/** A key pressed in a map of the grid.
 * @param {Viewer} view @param {KeyboardEvent} event @returns {boolean} whether it meant something */
function pressInGrid(view, { key }) {
  const last = view.entries.length - 1;
  const columns = Number(view.maps.style.getPropertyValue("--rw-columns"));
  const { entry } = view.spot;
  /** @type {Record<string, number>} */
  const moves = {
    ArrowLeft: entry - 1, ArrowRight: entry + 1, ArrowUp: entry - columns, ArrowDown: entry + columns, Home: 0,
    End: last,
  };
  if (key === "Enter" || key === " ") view.open(view.entries[entry].pair);
  else if (key in moves) {
    if (moves[key] >= 0 && moves[key] <= last) view.point({ entry: moves[key], slot: 0, query: -1, key: -1 });
    view.target()?.focus();
  } else return false;
  return true;
}

/** A key pressed in the large map.
 * @param {Viewer} view @param {KeyboardEvent} event @returns {boolean} whether it meant something */
function pressInMap(view, { key }) {
  const { role, token, layers, heads, shown } = view.state;
  const last = view.entries[0].slots[0].piece.item.size - 1;
  const steps = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0],
  };
  if (key in steps) {
    const [down, right] = steps[/** @type {keyof steps} */ (key)];
    const [along, across] = role === "query" ? [down, right] : [right, down];
    const other = role === "query" ? "key" : "query";
    const bounded = (/** @type {number} */ at) => Math.max(0, Math.min(last, at));
    const now = along ? bounded(Math.max(token, -1) + along) : Math.max(token, 0);
    const cross = bounded((view.spot[other] < 0 ? now : view.spot[other]) + across);
    const seen = across !== 0 || view.spot[other] >= 0;
    view.spot = /** @type {any} */ ({ ...view.spot, [role]: now, [other]: seen ? cross : -1 });
    view.select(now);
  } else if (key === "Home" || key === "End") view.select(key === "Home" ? 0 : last);
  else if (key === "+" || key === "=") view.zoomBy(0.5);
  else if (key === "-") view.zoomBy(2);
  else if (key === "0") view.zoomBy(Infinity);
  else if (key === "Escape" && layers.length * heads.length > 1) view.open([]);
  else if (key === "Escape") view.select(-1);
  else if (key === "n" || key === "p") {
    const all = view.pairs(layers, heads, shown);
    const at = all.findIndex((pair) => `${pair}` === `${view.model.get("selected")}`);
    view.set({ selected: all[(at + (key === "n" ? 1 : all.length - 1)) % all.length] });
  } else return false;
  return true;
}

/** A key pressed on a token of the prompt.
 * @param {Viewer} view @param {KeyboardEvent} event @returns {boolean} whether it meant something */
function pressInPrompt(view, event) {
  const [here, token] = [Strip.under(event), view.state.token];
  const strip = view.strips.find(({ list }) => list.contains(/** @type {Node} */ (event.target)));
  if (here < 0 || !strip) return false;
  const last = strip.tokens.length - 1;
  const [before, after] = token < 0 ? [here, here] : [Math.max(0, token - 1), Math.min(last, token + 1)];
  /** @type {Record<string, number>} */
  const moves = {
    ArrowUp: before, ArrowLeft: before, ArrowDown: after, ArrowRight: after, Home: 0, End: last, Enter: here,
    " ": here, Escape: -1,
  };
  if (!(event.key in moves)) return false;
  const wanted = moves[event.key];
  view.select(wanted);
  if (wanted >= 0) strip.fill(strip.tokens, strip.name.textContent ?? "", wanted);
  (strip.chip(wanted) ?? strip.chip(here))?.focus({ preventScroll: true });
  return true;
}

/** The map under the pointer and its cell. @param {Viewer} view @param {MouseEvent} event */
function under(view, event) {
  const root = event.target instanceof Element ? event.target.closest(".rw-plate") : null;
  for (const [entry, { slots }] of view.entries.entries())
    for (const [slot, { plate, piece: { item: { size } } }] of slots.entries())
      if (plate.root === root) {
        const [query, key] = plate.under(event, view.view(size), size);
        return { entry, slot, query, key };
      }
  return null;
}

/** @param {Viewer} view */
function listen(view) {
  const { maps, side } = view;
  let from = /** @type {{x: number, y: number, zoom: Frame} | null} */ (null);
  let dragged = false;
  maps.addEventListener("pointerdown", (event) => {
    [dragged, from] = [false, view.zoom && { x: event.clientX, y: event.clientY, zoom: { ...view.zoom } }];
  });
  maps.addEventListener("pointermove", (event) => {
    const spot = under(view, event);
    if (from && event.buttons & 1 && view.zoom && spot) {
      const cell = view.entries[0].slots[0].plate.side / view.zoom.span;
      const [right, down] = [event.clientX - from.x, event.clientY - from.y];
      dragged ||= Math.hypot(right, down) > 4;
      Object.assign(view.zoom, { query: from.zoom.query - down / cell, key: from.zoom.key - right / cell });
      if (dragged) view.later();
    } else view.point(spot ?? { ...view.spot, query: -1, key: -1 });
  });
  const leave = () => view.point({ ...view.spot, query: -1, key: -1 });
  for (const area of [maps, side]) area.addEventListener("pointerleave", leave);
  maps.addEventListener("click", (event) => {
    const [spot, label] = [under(view, event), /** @type {Element} */ (event.target).closest("[data-axis]")];
    const cell = view.entries.find(({ cell: each }) => each.contains(/** @type {Node} */ (event.target)));
    if (!view.state.selected.length) return cell && view.open(cell.pair);
    if (label instanceof HTMLElement) view.select(Number(label.dataset.position), label.dataset.axis);
    const role = event.shiftKey ? "key" : view.state.role;
    if (spot && spot.query >= 0 && spot.key >= 0 && !dragged) view.select(role === "key" ? spot.key : spot.query, role);
  });
  maps.addEventListener("wheel", (event) => {
    const spot = event.ctrlKey && view.state.selected.length ? under(view, event) : null;
    if (!spot || spot.query < 0 || spot.key < 0) return;
    event.preventDefault();
    view.zoomBy(event.deltaY > 0 ? 1.25 : 0.8, [spot.query, spot.key]);
  }, { passive: false });
  side.addEventListener("pointerover", (event) => {
    const [at, { role }] = [Strip.under(event), view.state];
    view.point({ ...view.spot, query: role === "query" ? at : -1, key: role === "key" ? at : -1 });
  });
  side.addEventListener("click", (event) => {
    const strip = view.strips.find(({ bar }) => bar === event.target);
    if (strip) {
      const at = (event.offsetX / strip.bar.clientWidth) * strip.tokens.length;
      view.select(Math.max(0, Math.min(strip.tokens.length - 1, Math.floor(at))));
    } else if (Strip.under(event) >= 0) view.select(Strip.under(event));
  });
  view.root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.target instanceof Element)) return;
    const used = side.contains(event.target) ? pressInPrompt(view, event) : !maps.contains(event.target) ? false
      : view.state.selected.length ? pressInMap(view, event) : pressInGrid(view, event);
    if (used) event.preventDefault();
    if (used) event.stopPropagation();
  });
}
