// @ts-check
// What the front ends of all widgets share. It stands before a widget's own files, joined to one module.

/**
 * @typedef {{get: (name: string) => any, set: (name: string, value: any) => void, save_changes: () => void,
 *   on: (event: string, call: () => void) => void, off: (event: string, call: () => void) => void}} Model
 */

/** @type {Record<string, string>} */
const WHITE = { " ": "·", "\u00a0": "·", "\n": "↵", "\r": "↵", "\t": "⇥" };

/** @param {string} tag @param {string} name @param {string} [text] @param {Record<string, string>} [attributes] */
function make(tag, name, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** @param {string} tag @param {string} name @param {Record<string, string | number>} [attributes] */
function draw(tag, name, attributes = {}) {
  const element = /** @type {SVGElement} */ (document.createElementNS("http://www.w3.org/2000/svg", tag));
  element.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

/** Own, aligned copy of what a host hands over for bytes. @param {any} value @returns {ArrayBuffer} */
function buffer(value) {
  if (!value || value instanceof ArrayBuffer) return value ?? new ArrayBuffer(0);
  return value.buffer.slice(value.byteOffset, value.byteOffset + value.byteLength);
}

/** A token with what has no shape made visible. @param {string} token */
function visible(token) {
  const shown = token.replace(/[ \u00a0\n\r\t]/g, (letter) => WHITE[letter])
    .replace(/[\u0000-\u001f]/g, (letter) => String.fromCharCode(0x2400 + letter.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]/g, "�");
  return shown.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "�") || "∅";
}

/** A visible token, cut where it has more letters than there is room for. @param {string} token @param {number} most */
function short(token, most) {
  const letters = [...visible(token)];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}

/** One call for all that changes at a time; its `stop` drops a call still to come. @param {() => void} call */
function together(call) {
  let timer = 0;
  const ask = () => {
    clearTimeout(timer);
    timer = setTimeout(call);
  };
  return Object.assign(ask, { stop: () => clearTimeout(timer) });
}

/** Calls when the host's theme has changed, until the function returned is called. The style sheet gives the root's
 * colour a moment, whose end tells it; JupyterLab swaps whole style sheets, which may start none, then names the theme.
 * @param {HTMLElement} root @param {() => void} call */
function onTheme(root, call) {
  const named = new MutationObserver(() => call());
  const ended = (/** @type {Event} */ event) => event.target === root && call();
  root.addEventListener("transitionend", ended);
  named.observe(document.body, { attributeFilter: ["data-jp-theme-name"] });
  return () => {
    root.removeEventListener("transitionend", ended);
    named.disconnect();
  };
}
