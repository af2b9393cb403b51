// @ts-check
// The list of fine-tunes: a row each, one of them selected; arrow keys move. Texts are set as text, never as markup.

const COLUMNS = ["State", "Run", "Progress", "Time", "Memory", "Right"];
const TITLES = { Right: "Share of the held-out rows answered rightly, mean over tasks" };

/** @param {string} name @param {string} kind @param {string} [text] */
function make(name, kind, text) {
  const element = document.createElement(name);
  element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @param {{name: string, done: number, of: number}} row */
function bar(row) {
  const box = make("div", "rt-progress");
  const track = make("div", "rt-track");
  const fill = make("div", "rt-fill");
  fill.style.width = `${row.of ? (100 * row.done) / row.of : 0}%`;
  track.append(fill);
  box.append(track, make("span", "rt-steps", row.of ? `${row.done} / ${row.of}` : ""));
  return box;
}

/** @param {any} row */
function cells(row) {
  const state = make("td", "rt-state");
  state.append(make("span", `rt-dot rt-${row.state.replace(/ /g, "-")}`), make("span", "", row.state));
  const run = make("td", "rt-run");
  run.append(make("div", "rt-name", row.name), make("div", "rt-about", row.about));
  const progress = make("td", "");
  progress.append(bar(row));
  return [state, run, progress, make("td", "rt-time", row.time), make("td", "", row.memory), make("td", "", row.right)];
}

/** @param {{model: {get: (name: string) => any, set: Function, save_changes: Function, on: Function, off: Function}, el: HTMLElement}} host */
function render({ model, el }) {
  const table = make("table", "rt-list");
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "Fine-tunes");
  const head = document.createElement("thead");
  const titles = document.createElement("tr");
  for (const name of COLUMNS) {
    const cell = make("th", "", name);
    cell.title = /** @type {any} */ (TITLES)[name] ?? "";
    titles.append(cell);
  }
  head.append(titles);
  const body = document.createElement("tbody");
  table.append(head, body);

  /** @type {Map<string, {element: HTMLElement, text: string}>} */
  const known = new Map();

  /** @param {string} name */
  const select = (name) => {
    model.set("selected", name);
    model.save_changes();
    mark();
  };
  const mark = () => {
    const selected = model.get("selected");
    const rows = /** @type {HTMLElement[]} */ ([...body.children]);
    const some = rows.some((row) => row.dataset.name === selected);
    rows.forEach((row, place) => {
      const own = row.dataset.name === selected;
      row.setAttribute("aria-selected", String(own));
      row.tabIndex = own || (!some && place === 0) ? 0 : -1;
    });
  };
  const draw = () => {
    const rows = model.get("rows");
    const root = /** @type {Document | ShadowRoot} */ (table.getRootNode());
    const focused = /** @type {HTMLElement | null} */ (root.activeElement);
    const names = new Set(rows.map((/** @type {any} */ row) => row.name));
    for (const [name, { element }] of known) {
      if (!names.has(name)) {
        element.remove();
        known.delete(name);
      }
    }
    rows.forEach((/** @type {any} */ row, /** @type {number} */ place) => {
      let found = known.get(row.name);
      if (!found) {
        found = { element: document.createElement("tr"), text: "" };
        found.element.dataset.name = row.name;
        known.set(row.name, found);
      }
      const text = JSON.stringify(row);
      if (text !== found.text) {
        found.text = text;
        found.element.title = row.error;
        found.element.replaceChildren(...cells(row));
      }
      if (body.children[place] !== found.element) body.insertBefore(found.element, body.children[place] ?? null);
    });
    if (body.contains(focused) && root.activeElement !== focused) focused?.focus(); // a row that moves loses it
    mark();
  };
  const press = (/** @type {KeyboardEvent} */ event) => {
    const rows = /** @type {HTMLElement[]} */ ([...body.children]);
    const now = rows.indexOf(/** @type {HTMLElement} */ (event.target));
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: rows.length - 1, Enter: now, " ": now };
    const next = rows[moves[event.key]];
    if (!next) return;
    event.preventDefault();
    select(next.dataset.name ?? "");
    next.focus();
  };
  const click = (/** @type {MouseEvent} */ event) => {
    const row = /** @type {HTMLElement} */ (event.target).closest("tbody tr");
    if (row) select(/** @type {HTMLElement} */ (row).dataset.name ?? "");
  };
  body.addEventListener("click", click);
  body.addEventListener("keydown", press);
  model.on("change:rows", draw);
  model.on("change:selected", mark);
  el.append(table);
  draw();
  return () => {
    model.off("change:rows", draw);
    model.off("change:selected", mark);
    table.remove();
  };
}

export default { render };
