// @ts-check
/// <reference path="base.js" />
/// <reference path="viewer.js" />
// The controls above the maps.

class Tools {
  bar = make("div", "rw-tools", "", { role: "group", "aria-label": "What is shown" });
  tools = /** @type {Record<string, HTMLSelectElement & HTMLInputElement>} */ ({});

  /** @param {Viewer} view */
  constructor(view) {
    this.view = view;
    const add = (/** @type {string} */ name, /** @type {string} */ text, /** @type {string} */ tag, type = "") => {
      const [label, tool] = [make("label", `rw-tool rw-for-${name}`, text), make(tag, "rw-control", "", { name })];
      if (type) tool.setAttribute("type", type);
      label.append(tool);
      this.bar.append(label);
      this.tools[name] = /** @type {any} */ (tool);
      tool.addEventListener("change", () => this.change(name));
    };
    const button = (/** @type {string} */ name, /** @type {string} */ text, /** @type {string} */ about) => {
      const said = { type: "button", title: about, "aria-label": about };
      const made = make("button", `rw-button rw-for-${name}`, text, said);
      made.addEventListener("click", () => this.press(name));
      this.bar.append(made);
      this.tools[name] = /** @type {any} */ (made);
    };
    add("heads", "Heads", "input", "text");
    const list = make("datalist", "", "", { id: `rw-heads-${Math.random().toString(36).slice(2)}` });
    this.tools.heads.after(list);
    const hint = { list: list.id, placeholder: "all", size: "9", title: "All, or like L3 L5H2" };
    for (const [key, value] of Object.entries(hint)) this.tools.heads.setAttribute(key, value);
    for (const [name, text] of [["head", "Large"], ["scale", "Scale"], ["role", "Token is"], ["compare", "Compare"],
      ["versus", "B is"]]) add(name, text, "select");
    add("masked", "without sink", "input", "checkbox");
    button("grid", "◂ Grid", "Back to the grid of heads (Escape)");
    button("out", "−", "Zoom out (−)");
    button("in", "+", "Zoom in (+)");
    button("fit", "Fit", "Whole map (0)");
    button("svg", "SVG", "Save what is on screen as SVG");
    button("pdf", "PDF", "Save what is on screen as PDF");
  }

  /** A control was changed. @param {string} name */
  change(name) {
    const { value, checked } = this.tools[name];
    const { layers, heads, shown, selected, tokens_b: other } = this.view.state;
    const pair = value.split(",").filter(Boolean).map(Number);
    if (name === "heads") {
      const found = parseHeads(value, layers, heads);
      this.tools.heads.setAttribute("aria-invalid", String(!found));
      this.view.complaint = found ? "" : `No head is named '${value}' here; write all, or names like L3 L5H2.`;
      if (found) this.view.set({ shown: found, selected: [] });
      else this.view.later();
    } else if (name === "head") this.view.open(pair);
    else if (name === "masked") this.view.set({ masked: checked });
    else if (name === "versus") this.view.set({ versus: pair, ...(!pair.length && !other.length && { compare: "a" }) });
    else if (name === "compare" && value !== "a" && !other.length && !this.view.state.versus.length) {
      const all = this.view.pairs(layers, heads, shown);
      const at = all.findIndex((each) => `${each}` === `${selected}`);
      this.view.set({ compare: value, versus: all[(at + 1) % all.length] });
    } else this.view.set({ [name]: value });
  }

  /** A button was pressed. @param {string} name */
  press(name) {
    if (name === "grid") this.view.open([]);
    else if (name === "svg" || name === "pdf") this.view.save(name);
    else this.view.zoomBy({ in: 0.5, out: 2, fit: Infinity }[name] ?? 1);
  }

  /** Brings the controls up to date. */
  fill() {
    const { layers, heads, shown, selected, scale, role, compare, versus, masked, sinks } = this.view.state;
    const { names, tokens, tokens_b: other, has_scores: scores } = this.view.state;
    const pairs = this.view.pairs(layers, heads, []);
    const [a, b] = other.length ? ["A", "B"].map((side, at) => names[at] ?? side) : ["A", "B"];
    const listed = pairs.map((/** @type {number[]} */ pair) => [`${pair}`, headName(pair)]);
    const uneven = other.length && other.length !== tokens.length;
    const scales = Object.entries(SCALES).slice(0, scores ? 3 : 2).map(([each]) => [each, each]);
    fill(this.tools.head, [["", "none: grid"], ...listed], `${selected}`);
    fill(this.tools.versus, [["", other.length ? "the same head" : "none"], ...listed], `${versus}`);
    fill(this.tools.scale, scales, scale);
    fill(this.tools.role, [["query", "query"], ["key", "key"]], role);
    const ways = [["a", other.length ? a : "one head"], ["b", other.length ? b : "B"], ["beside", "side by side"],
      ["difference", "difference A − B"]];
    fill(this.tools.compare, ways.filter(([way]) => !(uneven && way === "difference")), compare);
    this.tools.masked.checked = masked;
    const { zoom } = this.view;
    const [several, large] = [pairs.length > 1, selected.length > 0];
    const use = { heads: several, head: several, compare: several || other.length, versus: several && compare !== "a",
      masked: sinks.length, grid: several && large, in: large, out: large && zoom, fit: large && zoom };
    for (const [name, wanted] of Object.entries(use))
      this.tools[name].closest(".rw-button, .rw-tool")?.toggleAttribute("hidden", !wanted);
    const list = /** @type {HTMLElement} */ (this.tools.heads.nextElementSibling);
    if (list.childElementCount !== layers.length)
      list.replaceChildren(...layers.map((/** @type {number} */ layer) =>
        make("option", "", "", { value: `L${layer}` })));
    const root = /** @type {Document | ShadowRoot} */ (this.view.root.getRootNode());
    if (root.activeElement !== this.tools.heads) this.tools.heads.value = shorten(shown, heads);
    this.entitle();
  }

  /** Says above the maps which they are. */
  entitle() {
    const { selected, title, tokens_b: other } = this.view.state;
    const [first] = this.view.entries;
    const what = selected.length ? headName(selected) : `${this.view.entries.length} heads`;
    const labels = first.slots.map(({ piece: { label } }) =>
      (selected.length ? label : label.replaceAll(headName(first.pair), "").trim()));
    const plain = !other.length && this.view.comparison(!selected.length) === "a";
    this.view.title.textContent = `${what}${title ? ` on ${title}` : ""}${plain ? "" : ` · ${labels.join(" and ")}`}`;
  }
}
