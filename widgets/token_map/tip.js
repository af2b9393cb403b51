// @ts-check
/// <reference path="base.js" />
// What a point is, in words: its token among its neighbours in the text, and its categories.

const [BEFORE, AFTER] = [6, 3]; // tokens of the text around the one pointed at

class Tip {
  root = make("div", "rw-tip", "", { role: "tooltip" });

  /** @param {Data} data @param {number} point */
  describe(data, point) {
    const lines = data.colourings.map((name, at) => `${name}: ${data.names[at][data.codes[at][point]]}`);
    if (data.span) lines.push(`position ${data.start + (point % data.span)} of sequence ${Math.floor(point / data.span)}`);
    return lines;
  }

  /** Shows a point at a place of the map; -1 hides it.
   * @param {Data | null} data @param {number} point @param {[number, number]} place @param {DOMRect} room */
  show(data, point, [x, y], room) {
    this.root.hidden = !data || point < 0 || point >= data.count;
    if (!data || this.root.hidden) return;
    const text = make("div", "rw-text");
    if (data.textCodes.length) text.append(...this.context(data, point));
    this.root.replaceChildren(text, ...this.describe(data, point).map((line) => make("div", "", line)));
    const [width, height] = [this.root.offsetWidth, this.root.offsetHeight];
    this.root.style.left = `${Math.max(0, Math.min(x + 14, room.width - width))}px`;
    this.root.style.top = `${y + 18 + height > room.height ? Math.max(0, y - height - 10) : y + 18}px`;
  }

  /** @param {Data} data @param {number} point */
  context({ texts, textCodes, span }, point) {
    const from = span ? Math.max(point - BEFORE, point - (point % span)) : point;
    const to = span ? Math.min(point + AFTER, point - (point % span) + span - 1, textCodes.length - 1) : point;
    return Array.from({ length: to - from + 1 }, (_, step) =>
      make("span", from + step === point ? "rw-token rw-own" : "rw-token", visible(texts[textCodes[from + step]])));
  }
}
