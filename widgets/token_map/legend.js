// @ts-check
/// <reference path="base.js" />
// The categories with their colours and counts: each can be hidden, and its tokens selected.

class Legend {
  root = make("div", "rw-legend", "", { role: "group" });
  rows = /** @type {{toggle: HTMLElement, pick: HTMLElement, count: HTMLElement}[]} */ ([]);
  stop = 0; // the category that the Tab key reaches
  total = new Uint32Array();

  /** @param {{toggled: (category: number, alone: boolean) => void, picked: (category: number, how: string) => void}} calls */
  constructor(calls) {
    this.calls = calls;
    this.root.addEventListener("click", (event) => this.click(event));
    this.root.addEventListener("keydown", (event) => {
      if (!this.press(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  /** @param {Data} data */
  draw({ names, colours, codes, by, colourings }) {
    this.total = tally(codes[by], names[by].length);
    this.root.setAttribute("aria-label", `Categories of ${colourings[by]}`);
    this.stop = 0;
    this.names = names[by];
    const listed = [...names[by].keys()].filter((category) => this.total[category]);
    this.rows = [];
    this.root.replaceChildren(...listed.map((category) => this.row(category, colours[by][category])));
    this.moveStop(listed[0] ?? 0, false);
  }

  /** @param {number} category @param {string} colour */
  row(category, colour) {
    const name = (this.names ?? [])[category];
    const at = { "data-category": String(category), tabindex: "-1", type: "button" };
    const [row, swatch] = [make("div", "rw-row"), make("span", "rw-swatch")];
    const [toggle, pick] = [make("button", "rw-toggle", "", { ...at, role: "checkbox" }),
      make("button", "rw-pick", "select", at)];
    const count = make("span", "rw-count");
    swatch.style.setProperty("--rw-colour", colour);
    pick.setAttribute("aria-label", `Select the ${number(this.total[category])} tokens of ${name}`);
    toggle.title = `${name}: click to hide or show, Alt+click to show it alone`;
    toggle.append(swatch, make("span", "rw-name", name), count);
    row.append(toggle, pick);
    this.rows[category] = { toggle, pick, count };
    return row;
  }

  /** Marks what is hidden, and counts what is selected. @param {number[]} hidden @param {Uint32Array | null} selected */
  show(hidden, selected) {
    this.rows.forEach(({ toggle, count }, category) => {
      const [all, name] = [number(this.total[category]), (this.names ?? [])[category]];
      const own = selected ? `${number(selected[category])} / ${all}` : all;
      count.textContent = own;
      toggle.setAttribute("aria-checked", String(!hidden.includes(category)));
      toggle.setAttribute("aria-label", `${name}, ${own.replace("/", "of")} tokens${selected ? " selected" : ""}`);
    });
  }

  /** @param {number} category @param {boolean} focus */
  moveStop(category, focus) {
    for (const button of Object.values(this.rows[this.stop] ?? {})) button.setAttribute("tabindex", "-1");
    this.stop = category;
    this.rows[category]?.toggle.setAttribute("tabindex", "0");
    if (focus) this.rows[category]?.toggle.focus();
  }

  /** @param {MouseEvent} event */
  click(event) {
    const button = event.target instanceof Element ? event.target.closest("button") : null;
    if (!button) return;
    const category = Number(button.dataset.category);
    this.moveStop(category, false);
    if (button.classList.contains("rw-pick")) this.calls.picked(category, asked(event));
    else this.calls.toggled(category, event.altKey);
  }

  /** Whether a key moved the focus. @param {KeyboardEvent} event */
  press({ key }) {
    const listed = [...this.rows.keys()].filter((category) => this.rows[category]);
    const at = listed.indexOf(this.stop);
    /** @type {Record<string, number>} */
    const moves = { ArrowUp: Math.max(0, at - 1), ArrowDown: Math.min(listed.length - 1, at + 1), Home: 0,
      End: listed.length - 1 };
    if (key in moves) this.moveStop(listed[moves[key]], true);
    else if (key === "ArrowRight") this.rows[this.stop].pick.focus();
    else if (key === "ArrowLeft") this.rows[this.stop].toggle.focus();
    else return false;
    return true;
  }
}
