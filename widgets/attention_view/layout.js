// @ts-check
/// <reference path="base.js" />
/// <reference path="viewer.js" />
// Where maps and labels go.

/** Size of a small map, so that the layers are rows where there is room.
 * @param {Viewer} view @param {number} count of heads @param {number} maps of each @param {number} width */
function arrange(view, count, maps, width) {
  const { heads } = view.state;
  const rows = count > heads.length && count % heads.length === 0 && width / heads.length >= 60 * maps;
  const fair = Math.max(84 * maps, Math.min(270 * maps, Math.sqrt((width * 520 * maps) / count)));
  const columns = rows ? heads.length : Math.min(count, Math.max(1, Math.floor(width / fair)));
  view.maps.style.setProperty("--rw-columns", String(columns));
  const most = Math.max(88, 640 / Math.ceil(count / columns) - 24);
  return Math.floor(Math.min(260, most, ((width - 4) / columns - 12) / maps - 3));
}

/** A place for a map in a cell; a large one has labels around it.
 * @param {Viewer} view @param {HTMLElement} cell @param {number} size in tokens @param {number} side of a small map, 0
 * for a large one @param {number} width there is @returns {Slot} */
function makeSlot(view, cell, size, side, width) {
  const [plate, labels] = [new Plate(), make("div", "rw-labels")];
  const name = make("div", "rw-caption rw-above");
  const slot = { plate, labels, name, left: 0, part: undefined, piece: /** @type {any} */ (null) };
  if (side) {
    plate.resize(side);
    cell.append(plate.root);
    return slot;
  }
  const tokens = [...view.state.tokens, ...view.state.tokens_b];
  slot.left = Math.ceil(Math.max(48, ...tokens.map((token) => room(short(token, LONGEST)))) + 14);
  const free = width - slot.left - EDGE - GAP;
  const tall = Math.min(760, Math.max(SMALLEST, innerHeight - 260));
  plate.resize(Math.max(160, Math.min(LARGEST * size, tall, Math.floor(free))));
  const box = make("div", "rw-large");
  box.style.width = `${slot.left + plate.side + EDGE}px`;
  box.style.height = `${TOP + plate.side + slot.left}px`;
  name.style.left = `${slot.left + 76}px`;
  Object.assign(plate.root.style, { left: `${slot.left}px`, top: `${TOP}px` });
  Object.assign(plate.root, { tabIndex: 0, role: "application", ariaRoleDescription: "attention map" });
  box.append(name, labels, plate.root);
  cell.append(box);
  return slot;
}

/** Labels of the tokens where there is room, always of the selected one. @param {Viewer} view @param {Slot} slot */
function label(view, { plate, piece, labels, name, left }) {
  const { token, role, sinks, masked } = view.state;
  const { query, key, span } = view.view(piece.tokens.length);
  const cell = plate.side / span;
  const step = cell >= LABELLED ? 1 : Math.ceil((1.5 * LABELLED) / cell);
  name.textContent = view.entries[0].slots.length > 1 ? piece.label : "";
  plate.root.setAttribute("aria-label", `${piece.label}, ${piece.tokens.length} queries (rows) by keys (columns), ` +
    "arrow keys move, + and − zoom, N and P go to other heads, Escape leads back");
  const made = [];
  for (let at = 0; at < span; at++)
    for (const [axis, from] of [["query", query], ["key", key]]) {
      const [position, chosen] = [Number(from) + at, Number(from) + at === token];
      const near = token >= from && token < Number(from) + span && Math.abs(position - token) < step;
      if (!chosen && (near || position % step)) continue;
      const kind = axis === "key" ? "rw-label rw-turned" : "rw-label";
      const label = make("div", chosen && axis === role ? `${kind} rw-strong` : kind, short(piece.tokens[position], LONGEST));
      const middle = (at + 0.5) * cell - 7;
      Object.assign(label.style, axis === "query" ? { top: `${TOP + middle}px`, width: `${left - 6}px` }
        : { left: `${left + middle}px`, top: `${TOP + plate.side + 6}px` });
      label.dataset.axis = String(axis);
      label.dataset.position = String(position);
      made.push(label);
    }
  for (const sink of sinks) {
    if (sink < key || sink >= key + span) continue;
    const mark = make("div", "rw-sink", masked ? "▾ masked" : "▾ sink");
    mark.style.left = `${left + (sink - key + 0.5) * cell - 5}px`;
    made.push(mark);
  }
  const axes = make("div", "rw-label rw-axes", "↑ query");
  axes.append(make("br", ""), "key →");
  Object.assign(axes.style, { top: `${TOP + plate.side + 6}px`, width: `${left - 14}px` });
  labels.replaceChildren(axes, ...made);
}
