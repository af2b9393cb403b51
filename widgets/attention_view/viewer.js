// @ts-check
/// <reference path="base.js" />
/// <reference path="data.js" />
/// <reference path="parts.js" />
/// <reference path="words.js" />
/// <reference path="save.js" />
/// <reference path="tools.js" />
/// <reference path="input.js" />
// The view as a whole: which maps there are, what is painted, and what the selected token says.

class Viewer {
  root = make("div", "rw-widget rw-attention");
  tools = new Tools(this);
  note = make("div", "rw-note", "", { role: "status" });
  figure = make("div", "rw-figure");
  title = make("div", "rw-title");
  maps = make("div", "rw-maps");
  side = make("div", "rw-side");
  legend = make("div", "rw-legend");
  live = make("div", "rw-live", "", { "aria-live": "polite" });
  read = make("div", "rw-read");
  palette = new Palette();
  strips = /** @type {Strip[]} */ ([]);
  entries = /** @type {Entry[]} */ ([]);
  state = /** @type {State} */ ({});
  joined = /** @type {string[]} */ ([]);
  zoom = /** @type {Frame | null} */ (null);
  spot = { entry: 0, slot: 0, query: -1, key: -1 }; // what is pointed at, and in the grid the map that is in use
  built = "";
  complaint = "";
  focus = false; // whether a map that comes next takes the keyboard

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.later = together(() => this.update());
    this.fetcher = new Fetcher(model, this.later);
    this.seen = new IntersectionObserver((changes) => this.look(changes), { rootMargin: "60px" });
    // JupyterLab would otherwise take the arrow keys for itself.
    this.root.dataset.lmSuppressShortcuts = "true";
    this.side.append(this.legend, this.live, this.read);
    const body = make("div", "rw-body");
    body.append(this.maps, this.side);
    this.figure.append(this.title, body);
    this.root.append(this.palette.probe, this.tools.bar, this.note, this.figure);
    listen(this);
  }

  /** @param {Record<string, any>} changes */
  set(changes) {
    for (const [name, value] of Object.entries(changes)) this.model.set(name, value);
    this.model.save_changes();
    this.later();
  }

  /** @param {number[]} layers @param {number[]} heads @param {number[][]} shown @returns {number[][]} */
  pairs(layers, heads, shown) {
    return shown.length ? shown : layers.flatMap((layer) => heads.map((head) => [layer, head]));
  }

  /** Makes a head large, or goes back to the grid. @param {number[]} pair */
  open(pair) {
    [this.zoom, this.focus] = [null, true];
    this.set({ selected: pair });
  }

  /** How the sides are compared: as wished, or what the tokens allow. @param {boolean} small whether in the grid */
  comparison(small) {
    const { compare, tokens, tokens_b: other, versus } = this.state;
    if (!other.length && (!versus.length || (small && compare !== "difference"))) return "a";
    return compare === "difference" && other.length && tokens.length !== other.length ? "beside" : compare;
  }

  /** The maps of a head. @param {number[]} pair @param {boolean} small @returns {Piece[]} */
  pieces(pair, small) {
    const { tokens, tokens_b: other, versus, names, scale, masked, sinks } = this.state;
    const how = this.comparison(small);
    const item = { b: /** @type {number[] | null} */ (null), scale, masked: masked ? sinks : [], bins: 0 };
    const [two, against] = [Number(other.length > 0), versus.length ? versus : pair];
    const name = (/** @type {number} */ at) => (two ? `${names[at] ?? "AB"[at]} ` : "");
    const [label, labelB] = [`${name(0)}${headName(pair)}`, `${name(1)}${headName(against)}`];
    const tokensB = two ? other : tokens;
    const a = { label, tokens, item: { ...item, a: [0, ...pair], size: tokens.length } };
    const b = { label: labelB, tokens: tokensB, item: { ...item, a: [two, ...against], size: tokensB.length } };
    if (how === "difference")
      return [{ label: `${label} − ${labelB}`, tokens: this.joined, item: { ...a.item, b: b.item.a } }];
    return how === "beside" ? [a, b] : how === "b" ? [b] : [a];
  }

  /** Brings the page up to date with the traits. */
  update() {
    if (!this.root.isConnected) return;
    const before = this.state;
    this.state = read(this.model);
    const { tokens, tokens_b: other, layers, heads, shown, selected } = this.state;
    if (before.tokens !== tokens || before.tokens_b !== other)
      this.joined = tokens.map((/** @type {string} */ token, /** @type {number} */ at) =>
        (other.length && token !== other[at] ? `${token}|${other[at]}` : token));
    const empty = !tokens.length || !layers.length || !heads.length;
    this.figure.hidden = this.tools.bar.hidden = empty;
    if (empty) {
      this.note.replaceChildren(make("span", "", "No prompt to show."));
      return;
    }
    const pairs = selected.length ? [selected] : this.pairs(layers, heads, shown);
    const sizes = this.pieces(pairs[0], !selected.length).map((piece) => piece.tokens.length);
    const built = JSON.stringify([selected.length || pairs, sizes, this.root.clientWidth]);
    if (built !== this.built) this.build(pairs, sizes);
    [this.built, this.entries[0].pair] = [built, pairs[0]];
    for (const { pair, slots, cell } of this.entries) {
      this.pieces(pair, !selected.length).forEach((piece, at) => (slots[at].piece = piece));
      if (!selected.length) cell.setAttribute("aria-label", `${headName(pair)}, Enter makes it large`);
    }
    this.tools.fill();
    this.paint();
  }

  /** Makes the places for maps. @param {number[][]} pairs @param {number[]} sizes tokens of the maps of a head */
  build(pairs, sizes) {
    const [large, width] = [this.state.selected.length > 0, this.root.clientWidth || 640];
    const root = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    const typing = this.focus || this.maps.contains(root.activeElement);
    this.seen.disconnect();
    this.figure.classList.toggle("rw-is-large", large);
    this.maps.removeAttribute("role");
    if (!large) {
      this.maps.setAttribute("role", "listbox");
      this.maps.setAttribute("aria-label", "Heads");
    }
    // Beside a large map there is the prompt or a second map, where they have room.
    const free = width <= 860 ? width : sizes.length > 1 ? width / 2 : width - 340;
    const side = large ? 0 : arrange(this, pairs.length, sizes.length, width);
    this.entries = pairs.map((pair) => {
      const cell = make("div", large ? "rw-pair" : "rw-cell");
      if (!large) Object.assign(cell, { role: "option", tabIndex: -1, ariaSelected: "false" });
      const slots = sizes.map((size) => makeSlot(this, cell, size, side, free));
      if (!large) cell.prepend(make("div", "rw-label", headName(pair)));
      return { pair, cell, visible: large, slots };
    });
    this.spot = { entry: Math.max(0, Math.min(this.spot.entry, pairs.length - 1)), slot: 0, query: -1, key: -1 };
    this.maps.replaceChildren(...this.entries.map(({ cell }) => cell));
    if (!large) for (const { cell } of this.entries) this.seen.observe(cell);
    if (typing) this.target()?.focus({ preventScroll: !this.focus });
    this.focus = false;
  }

  /** What the keyboard is on: the large map, or a map of the grid. @returns {HTMLElement | null} */
  target() {
    const { cell } = this.entries[this.spot.entry];
    return this.state.selected.length ? cell.querySelector(".rw-plate") : cell;
  }

  /** @param {IntersectionObserverEntry[]} changes */
  look(changes) {
    for (const { target, isIntersecting } of changes) {
      const entry = this.entries.find(({ cell }) => cell === target);
      if (entry) entry.visible = isIntersecting;
    }
    this.later();
  }

  /** The part of a map that is drawn. @param {number} size @returns {Frame} */
  view(size) {
    if (!this.zoom || !this.state.selected.length) return { query: 0, key: 0, span: size };
    const span = Math.min(size, this.zoom.span);
    const within = (/** @type {number} */ from) => Math.max(0, Math.min(size - span, Math.round(from)));
    return { query: within(this.zoom.query), key: within(this.zoom.key), span };
  }

  /** Paints what is on screen, and asks for what is not there yet. */
  paint() {
    const { causal, sinks, masked } = this.state;
    const large = this.state.selected.length > 0;
    const shown = this.entries.filter(({ visible: seen }) => seen).flatMap(({ slots }) => slots);
    this.palette.read();
    this.fetcher.wanted.clear();
    for (const slot of shown) {
      const pixels = slot.plate.side * devicePixelRatio;
      const bins = BINS.find((each) => each >= pixels) ?? 256;
      slot.piece.item.bins = large || slot.piece.item.size <= 1.5 * bins ? 0 : bins;
      slot.part = this.fetcher.get(slot.piece.item);
    }
    const hidden = new Set(masked ? sinks : []);
    for (const slot of shown) {
      const { plate, part, piece: { item } } = slot;
      const waits = !part && !this.fetcher.late;
      plate.root.classList.toggle("rw-waiting", waits);
      if (waits) continue; // what was here stays, dimmed
      const [range, signed] = [this.range(slot), item.b !== null];
      const colours = Array.from({ length: 256 }, (_, byte) =>
        this.palette.colour(part ? valueOf(part, byte) : NaN, range, signed));
      const ranks = colours.map((_, byte) =>
        (part?.rooted ? byte + 1 : byte === NOTHING ? 0 : signed ? Math.abs(byte - MIDDLE) + 1 : byte + 1));
      const size = item.bins || item.size;
      plate.paint(part, size, causal, item.bins ? { query: 0, key: 0, span: size } : this.view(size),
        [...colours, this.palette.nothing], [...ranks, 0], item.bins ? new Set() : hidden);
    }
    this.fetcher.ask();
    this.say(shown);
    this.drawLegend(shown);
    this.mark();
  }

  /** Lowest and highest value of the colours of a map. @param {Slot} slot */
  range({ piece: { item } }) {
    const parts = (/** @type {Slot[]} */ slots) => slots.flatMap(({ part }) => (part && !part.error ? [part] : []));
    if (item.b) {
      const limit = Math.max(0, ...parts(this.entries.flatMap(({ slots }) => slots)).map(({ high }) => high));
      return [-limit, limit];
    }
    if (item.scale !== "score") return item.scale === "log" ? [-12, 0] : [0, 1];
    const entry = this.entries.find(({ slots }) => slots.some(({ piece }) => piece.item === item));
    const ends = parts(entry?.slots ?? []).flatMap(({ low, high }) => [low, high]);
    return ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
  }

  /** Says what went wrong, or that Python is silent. @param {Slot[]} shown */
  say(shown) {
    const wrong = shown.find(({ part }) => part?.error);
    const silent = "Python has not answered: it may be busy or stopped. The maps appear here as soon as it answers.";
    const failed = wrong ? `${wrong.piece.label}: ${wrong.part?.error}` : "";
    const text = this.complaint || (this.fetcher.late ? silent : failed);
    if (text === this.note.firstChild?.textContent) return;
    const again = make("button", "rw-button", "Try again", { type: "button" });
    again.addEventListener("click", () => this.fetcher.retry());
    this.note.replaceChildren(...(text ? [make("span", "", text)] : []), ...(text && !this.complaint ? [again] : []));
  }

  /** @param {Slot[]} shown */
  drawLegend(shown) {
    const { scale, masked, selected } = this.state;
    const slot = shown[0] ?? this.entries[0].slots[0];
    const [range, signed] = [this.range(slot), slot.piece.item.b !== null];
    const own = scale === "score" && !selected.length && !signed;
    const canvas = Object.assign(make("canvas", "rw-ramp"), { width: 256, height: 1 });
    const pen = /** @type {HTMLCanvasElement} */ (canvas).getContext("2d");
    const table = signed ? this.palette.scale : this.palette.ramp;
    table.forEach((colour, at) => {
      if (pen) pen.fillStyle = `rgb(${colour})`;
      pen?.fillRect(at, 0, 1, 1);
    });
    const ends = make("div", "rw-ends");
    const texts = own ? ["lowest of each map", "highest"] : [0, 0.5, 1].map((share) =>
      number(range[0] + share * (range[1] - range[0]), scale === "probability" && !signed ? "log" : scale, signed));
    ends.append(...texts.map((text) => make("span", "", text)));
    const name = (signed ? "difference of " : "") + SCALES[/** @type {keyof SCALES} */ (scale)];
    this.legend.replaceChildren(make("div", "rw-quantity", name + (masked ? ", without the sink" : "")), canvas, ends);
  }

  /** Frames, labels, prompt and words of the selected token. */
  mark() {
    const { token, role, causal, selected } = this.state;
    const large = selected.length > 0;
    for (const [at, { cell, slots }] of this.entries.entries()) {
      if (!large) cell.tabIndex = at === this.spot.entry ? 0 : -1;
      for (const { plate, piece: { item: { size } } } of slots) {
        const here = token < size ? token : -1;
        const row = [here, 0, 1, causal ? here + 1 : size];
        const column = causal ? [here, here, size - here, 1] : [0, here, size, 1];
        plate.frame(plate.line, this.view(size), here < 0 ? [-1, 0, 0, 0] : role === "query" ? row : column);
      }
    }
    if (large) for (const slot of this.entries[0].slots) label(this, slot);
    const { slots } = this.entries[this.spot.entry];
    while (this.strips.length < slots.length) this.strips.push(new Strip());
    this.strips.length = slots.length;
    const roots = this.strips.map(({ root }) => root);
    if (roots.some((root) => !root.isConnected) || this.side.childElementCount !== 3 + roots.length)
      this.side.replaceChildren(this.legend, ...roots, this.live, this.read);
    const many = slots.length > 1 || !large;
    slots.forEach(({ piece }, at) => this.strips[at].fill(piece.tokens, many ? piece.label : "", token));
    const said = slots.map((slot) => summary(slot, this.state, many)).join(" ");
    this.live.textContent = token >= 0 ? said : large ? HINT : HINT_GRID;
    this.point(this.spot);
  }

  /** Shades the prompt by what is pointed at, or else by the selected token, and says the value.
   * @param {Spot} spot */
  point(spot) {
    const changed = spot.entry !== this.spot.entry;
    this.spot = spot;
    if (changed) return this.mark();
    const { token, role } = this.state;
    const { slots } = this.entries[spot.entry];
    const asked = role === "query" ? spot.query : spot.key;
    slots.forEach((slot, at) => {
      const [range, signed] = [this.range(slot), slot.piece.item.b !== null];
      const about = asked >= 0 && asked < slot.piece.item.size ? asked : token;
      const colours = along(slot, about, this.state)
        .map((value) => (value === undefined ? null : this.palette.colour(value, range, signed)));
      this.strips[at].zero = this.palette.colour(signed ? 0 : range[0], range, signed);
      this.strips[at].shade(colours, about, token, this.palette);
      const cell = [spot.key < 0 ? -1 : spot.query, spot.key, 1, 1];
      slot.plate.frame(slot.plate.spot, this.view(slot.piece.item.size), cell);
    });
    this.read.textContent = spot.query < 0 || spot.key < 0 ? "" : readout(slots[spot.slot], spot, this.state);
  }

  /** Selects a token, and shows it where the map is zoomed. @param {number} token @param {string} [role] */
  select(token, role = this.state.role) {
    for (const [name, value] of Object.entries({ token, role })) this.model.set(name, value);
    this.model.save_changes();
    if (this.zoom && token >= 0) {
      const axis = role === "query" ? "query" : "key";
      const from = this.view(this.entries[0].slots[0].piece.item.size)[axis];
      if (token < from || token >= from + this.zoom.span) {
        this.zoom[axis] = token - this.zoom.span / 2;
        this.later();
      }
    }
    this.follow();
  }

  /** Marks the token that is selected now; the maps stay as they are. */
  follow() {
    for (const name of ["token", "role"]) this.state[name] = this.model.get(name);
    this.tools.tools.role.value = this.state.role;
    if (this.built) this.mark();
  }

  /** Zooms around a cell, or around what is pointed at or selected. @param {number} factor @param {number[]} [cell] */
  zoomBy(factor, cell) {
    const { size } = this.entries[0].slots[0].piece.item;
    const view = this.view(size);
    const { query, key } = this.spot;
    const { token } = this.state;
    const middle = [view.query + view.span / 2, view.key + view.span / 2];
    const around = cell ?? (query >= 0 && key >= 0 ? [query, key] : token >= 0 ? [token, token] : middle);
    const span = Math.max(Math.min(CLOSEST, size), Math.min(size, Math.round(view.span * factor)));
    const from = (/** @type {number} */ at, /** @type {number} */ start) =>
      at - Math.max(0, Math.min(1, (at - start) / view.span)) * span;
    this.zoom = span >= size ? null : { query: from(around[0], view.query), key: from(around[1], view.key), span };
    this.later();
  }

  /** Saves what is on screen. @param {"svg" | "pdf"} kind */
  async save(kind) {
    const page = survey(this.figure, this.palette);
    const file = URL.createObjectURL(kind === "svg" ? toSvg(page) : await toPdf(page));
    const name = (this.title.textContent ?? "").replace(/[^\w-]+/g, "_").slice(0, 80) || "attention";
    make("a", "", "", { href: file, download: `${name}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(file), 10000);
  }
}
