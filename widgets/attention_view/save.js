// @ts-check
/// <reference path="base.js" />
/// <reference path="data.js" />
// What is on screen as SVG or PDF.

/** What an element shows, as marks on a page of its size. @param {HTMLElement} figure @param {Palette} palette */
function survey(figure, palette) {
  const frame = figure.getBoundingClientRect();
  const pad = 8;
  const marks = /** @type {Mark[]} */ ([]);
  const put = (/** @type {string} */ type, /** @type {DOMRect} */ box, /** @type {object} */ more, grow = 0) =>
    marks.push({ type, x: box.left - frame.left + pad - grow, y: box.top - frame.top + pad - grow,
      w: box.width + 2 * grow, h: box.height + 2 * grow, ...more });
  const hex = (/** @type {string} */ colour) =>
    `#${palette.rgb(colour).map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  const walk = (/** @type {Element} */ element) => {
    const style = getComputedStyle(element);
    if (style.display === "none" || style.visibility === "hidden") return;
    const box = element.getBoundingClientRect();
    if (element instanceof HTMLCanvasElement) put("image", box, { canvas: element });
    else if (style.backgroundColor !== "rgba(0, 0, 0, 0)") put("rect", box, { fill: hex(style.backgroundColor) });
    for (const [kind, side] of [["border", "borderTop"], ["outline", "outline"]]) {
      const read = (/** @type {string} */ what) => /** @type {any} */ (style)[side + what];
      const line = parseFloat(read("Width"));
      if (read("Style") === "none" || !line) continue;
      const dash = read("Style") === "dashed" ? 4 : read("Style") === "dotted" ? 1.5 : 0;
      put("rect", box, { stroke: hex(read("Color")), line, dash }, (kind === "border" ? -line : line) / 2);
    }
    for (const child of element.childNodes)
      if (child instanceof Element) walk(child);
      else if (child instanceof Text) write(child, style, element.classList.contains("rw-turned"));
  };
  const write = (/** @type {Text} */ node, /** @type {CSSStyleDeclaration} */ style, /** @type {boolean} */ turn) => {
    const [size, bold] = [parseFloat(style.fontSize), Number(style.fontWeight) >= 600];
    const mono = /mono/.test(style.fontFamily);
    const font = `${bold ? "bold " : ""}${size}px ${mono ? MONO : FONT}`;
    for (const { text, box } of linesOf(node)) {
      // The text box spans ascent and descent; the base line divides them about 4 to 1.
      put("text", box, { text, size, bold, mono, turn, font, fill: hex(style.color) });
      const mark = marks[marks.length - 1];
      if (turn) [mark.x, mark.y, mark.w] = [mark.x + 0.78 * mark.w, mark.y + mark.h, mark.h];
      else mark.y += 0.78 * mark.h;
    }
  };
  walk(figure);
  return { marks, width: Math.ceil(frame.width + 2 * pad), height: Math.ceil(frame.height + 2 * pad),
    paper: hex("var(--rw-paper)") };
}

/** The lines that a text is broken into, with their boxes. @param {Text} node */
function linesOf(node) {
  const lines = /** @type {{text: string, box: DOMRect}[]} */ ([]);
  for (const { 0: word, index } of node.data.matchAll(/\S+\s*/g)) {
    const range = document.createRange();
    range.setStart(node, index);
    range.setEnd(node, index + word.trimEnd().length);
    const box = range.getBoundingClientRect();
    const last = lines[lines.length - 1];
    if (last && Math.abs(last.box.top - box.top) < 2) {
      last.text += ` ${word.trimEnd()}`;
      last.box = new DOMRect(last.box.left, last.box.top, box.right - last.box.left, last.box.height);
    } else if (box.width) lines.push({ text: word.trimEnd(), box });
  }
  return lines;
}

/** @param {ReturnType<typeof survey>} page */
function toSvg({ marks, width, height, paper }) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const add = (/** @type {string} */ tag, /** @type {object} */ attributes, text = "") => {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    element.textContent = text;
    svg.append(element);
  };
  for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` }))
    svg.setAttribute(name, String(value));
  add("rect", { width, height, fill: paper });
  for (const { type, x, y, w, h, fill, stroke, line, dash, text, size, bold, mono, turn, canvas } of marks) {
    const box = { x, y, width: w, height: h };
    const sharp = { preserveAspectRatio: "none", style: "image-rendering:pixelated" };
    if (canvas) add("image", { ...box, ...sharp, href: canvas.toDataURL() });
    else if (type === "rect")
      add("rect", { ...box, fill: fill ?? "none", ...(stroke && { stroke, "stroke-width": line }),
        ...(dash && { "stroke-dasharray": dash }) });
    else
      add("text", { x: turn ? 0 : x, y: turn ? 0 : y, fill, "font-size": size, "font-family": mono ? MONO : FONT,
        ...(bold && { "font-weight": "bold" }), ...(turn && { transform: `translate(${x} ${y}) rotate(-90)` }),
        textLength: w, lengthAdjust: "spacingAndGlyphs" }, text);
  }
  return new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });
}

/** A file of numbered objects, written once all of them are there. */
class Pdf {
  parts = /** @type {Uint8Array[]} */ ([]);
  starts = /** @type {number[]} */ ([]);
  length = 0;

  /** @param {string | Uint8Array} part text in Latin-1 */
  write(part) {
    const raw = typeof part === "string" ? Uint8Array.from(part, (letter) => letter.charCodeAt(0)) : part;
    this.parts.push(raw);
    this.length += raw.length;
  }

  /** Adds an object and returns its number. @param {string} entries of its dictionary @param {Uint8Array} [stream] */
  async object(entries, stream) {
    const raw = stream && (await deflate(stream));
    this.starts.push(this.length);
    this.write(`${this.starts.length} 0 obj\n<<${entries}`);
    if (raw) {
      this.write(`${raw === stream ? "" : " /Filter /FlateDecode"} /Length ${raw.length}>>\nstream\n`);
      this.write(raw);
      this.write("\nendstream\nendobj\n");
    } else this.write(">>\nendobj\n");
    return this.starts.length;
  }

  /** @param {HTMLCanvasElement} canvas @param {string} ground for what is clear @param {string} [ink] of a stencil */
  async image(canvas, ground, ink) {
    const { width, height } = canvas;
    const flat = Object.assign(document.createElement("canvas"), { width, height });
    const pen = /** @type {CanvasRenderingContext2D} */ (flat.getContext("2d"));
    if (!ink) [pen.fillStyle] = [ground];
    if (!ink) pen.fillRect(0, 0, width, height);
    pen.drawImage(canvas, 0, 0);
    const { data } = pen.getImageData(0, 0, width, height);
    const take = (/** @type {number[]} */ channels) =>
      Uint8Array.from({ length: channels.length * width * height },
        (_, at) => data[4 * Math.floor(at / channels.length) + channels[at % channels.length]]);
    const kind = `/Type /XObject /Subtype /Image /BitsPerComponent 8`;
    const shape = `/Width ${width} /Height ${height}`;
    if (!ink) return this.object(`${kind} ${shape} /ColorSpace /DeviceRGB`, take([0, 1, 2]));
    const mask = await this.object(`${kind} ${shape} /ColorSpace /DeviceGray`, take([3]));
    const colour = Uint8Array.from([1, 3, 5], (at) => parseInt(ink.slice(at, at + 2), 16));
    return this.object(`${kind} /Width 1 /Height 1 /ColorSpace /DeviceRGB /SMask ${mask} 0 R`, colour);
  }

  /** @param {number} root */
  end(root) {
    const table = this.starts.map((start) => `${String(start).padStart(10, "0")} 00000 n \n`).join("");
    const [at, count] = [this.length, this.starts.length + 1];
    this.write(`xref\n0 ${count}\n0000000000 65535 f \n${table}trailer\n<</Size ${count} /Root ${root} 0 R>>\n`);
    this.write(`startxref\n${at}\n%%EOF\n`);
    return new Blob(/** @type {BlobPart[]} */ (this.parts), { type: "application/pdf" });
  }
}

/** @param {Uint8Array} raw */
async function deflate(raw) {
  if (!("CompressionStream" in globalThis)) return raw;
  const packed = new Blob([/** @type {BlobPart} */ (raw)]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(packed).arrayBuffer());
}

/** A text as a picture, for letters that the fonts of a PDF do not have. @param {Mark} mark */
function pictureOf({ text = "", w, size = 11, font = "" }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, Math.ceil(4 * w)), Math.ceil(6 * size)];
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.scale(4, 4);
  pen.font = font;
  pen.fillText(text, 0, 1.1 * size, w);
  return canvas;
}

/** One page: pictures, rectangles and text in the fonts that every reader has.
 * @param {ReturnType<typeof survey>} page */
async function toPdf({ marks, width, height, paper }) {
  const [pdf, images] = [new Pdf(), /** @type {number[]} */ ([])];
  const pen = document.createElement("canvas").getContext("2d");
  const rgb = (/** @type {string} */ hex) =>
    [1, 3, 5].map((at) => (parseInt(hex.slice(at, at + 2), 16) / 255).toFixed(4)).join(" ");
  const round = (/** @type {number[]} */ ...numbers) => numbers.map((each) => each.toFixed(3)).join(" ");
  const place = (/** @type {string} */ matrix) => `q ${matrix} cm /I${images.length} Do Q`;
  const lines = [`0.75 0 0 -0.75 0 ${round(0.75 * height)} cm`, `${rgb(paper)} rg 0 0 ${width} ${height} re f`];
  pdf.write("%PDF-1.4\n%\u00e2\u00e3\u00cf\u00d3\n");
  for (const mark of marks) {
    const { type, x, y, w, h, fill = "#000000", stroke, line = 1, dash = 0, size = 11, turn } = mark;
    const text = (mark.text ?? "").replace(/−/g, "\u0096").replace(/…/g, "\u0085");
    const way = turn ? "0 -1 1 0" : "1 0 0 1"; // of the line of text, in a page whose y points down
    if (mark.canvas) {
      images.push(await pdf.image(mark.canvas, paper));
      lines.push(place(round(w, 0, 0, -h, x, y + h)));
    } else if (stroke) {
      lines.push(`${rgb(stroke)} RG ${round(line)} w [${dash || ""}] 0 d ${round(x, y, w, h)} re S`);
    } else if (type === "rect") {
      lines.push(`${rgb(fill)} rg ${round(x, y, w, h)} re f`);
    } else if (/^[ -~\u0085\u0096\u00a0-\u00ff]*$/.test(text) && pen) {
      pen.font = mark.font ?? "";
      const stretch = (100 * w) / (pen.measureText(mark.text ?? "").width || w);
      const turned = turn ? `0 -1 -1 0 ${round(x, y)}` : `1 0 0 -1 ${round(x, y)}`;
      const name = `/${mark.mono ? "M" : "F"}${mark.bold ? "B" : ""}`;
      lines.push(`BT ${rgb(fill)} rg ${name} ${round(size)} Tf ${round(stretch)} Tz ${turned} Tm`);
      lines.push(`(${text.replace(/[\\()]/g, "\\$&")}) Tj ET`);
    } else {
      images.push(await pdf.image(pictureOf(mark), paper, fill));
      const tall = 1.5 * size;
      lines.push(`q ${way} ${round(x, y)} cm`, place(round(w, 0, 0, -tall, 0, 0.4 * size)), "Q");
    }
  }
  const latin = Uint8Array.from(lines.join("\n"), (letter) => letter.charCodeAt(0));
  const content = await pdf.object("", latin);
  const known = { F: "Helvetica", FB: "Helvetica-Bold", M: "Courier", MB: "Courier-Bold" };
  const fonts = Object.entries(known).map(([name, base]) =>
    `/${name} <</Type /Font /Subtype /Type1 /BaseFont /${base} /Encoding /WinAnsiEncoding>>`).join(" ");
  const pictures = images.map((object, at) => `/I${at + 1} ${object} 0 R`).join(" ");
  const parent = pdf.starts.length + 2;
  const size = round(0.75 * width, 0.75 * height);
  const sheet = await pdf.object(`/Type /Page /Parent ${parent} 0 R /MediaBox [0 0 ${size}] ` +
    `/Contents ${content} 0 R /Resources <</Font <<${fonts}>> /XObject <<${pictures}>>>>`);
  const pages = await pdf.object(`/Type /Pages /Kids [${sheet} 0 R] /Count 1`);
  return pdf.end(await pdf.object(`/Type /Catalog /Pages ${pages} 0 R`));
}
