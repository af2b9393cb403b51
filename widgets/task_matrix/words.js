// @ts-check
/// <reference path="../shared.js" />
// What the matrix holds, and what it says of a pair in numbers and words.

/**
 * @typedef {{count: number, names: string[], values: Float32Array, low: Float32Array, high: Float32Array,
 *   clear: Uint8Array, diagonal: Float32Array, diagonalName: string, details: string[], detailValues: Float32Array,
 *   signed: boolean, limit: number, quantity: string, absent: string, title: string, note: string}} Data
 */

/** The traits as typed arrays, or what does not fit together yet. @param {Model} model @returns {Data | string} */
function read(model) {
  const [names, details] = [model.get("names"), model.get("details")];
  const [count, square] = [names.length, 4 * names.length ** 2];
  const sizes = {
    values: square, low: square, high: square, clear: count ** 2, diagonal: 4 * count,
    detail_values: details.length * square,
  };
  /** @type {Record<string, ArrayBuffer>} */
  const raw = {};
  for (const [name, needed] of Object.entries(sizes)) {
    raw[name] = buffer(model.get(name));
    const found = raw[name].byteLength;
    if (found !== needed && (name === "values" || name === "detail_values" || found > 0))
      return `${name} has ${found} bytes, ${count} names and ${details.length} details need ${needed}`;
  }
  const values = new Float32Array(raw.values);
  const shown = values.filter((value, index) => Number.isFinite(value) && !isOwn(count, index));
  return {
    count, names, values, details,
    low: new Float32Array(raw.low), high: new Float32Array(raw.high), clear: new Uint8Array(raw.clear),
    diagonal: new Float32Array(raw.diagonal), detailValues: new Float32Array(raw.detail_values),
    diagonalName: model.get("diagonal_name"), signed: model.get("signed"), quantity: model.get("quantity"),
    absent: model.get("absent"), title: model.get("title"), note: model.get("note"),
    limit: model.get("limit") || shown.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1,
  };
}

/** Whether a cell lies on the diagonal. @param {number} count @param {number} index */
function isOwn(count, index) {
  return index % (count + 1) === 0;
}

/** A number with the digits that a range calls for, and `more`.
 * @param {number} value @param {number} limit @param {number} [more] */
function show(value, limit, more = 0) {
  if (limit < 1e-6 || limit >= 1e6) return value.toExponential(1 + more);
  const digits = limit >= 100 ? 0 : limit >= 10 ? 1 : limit >= 0.1 ? 2 : 1 - Math.floor(Math.log10(limit));
  const text = value.toFixed(digits + more);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

/** Two tasks, or one with itself. @param {Data} data @param {number} index */
function pairName({ names, count }, index) {
  const [row, column] = [Math.floor(index / count), index % count];
  return row === column ? `${names[row]} with itself` : `${names[row]} and ${names[column]}`;
}

/** What is written into a cell. @param {Data} data @param {number} index */
function written({ values, diagonal, limit, absent, count }, index) {
  const own = isOwn(count, index);
  if (own && !diagonal.length) return "";
  const value = own ? diagonal[index % count] : values[index];
  if (Number.isNaN(value)) return absent;
  return own ? `(${show(value, Math.max(limit, value))})` : show(value, limit);
}

/** The number of a cell beside its interval and the noise. @param {Data} data @param {number} index */
function describe(data, index) {
  const { values, low, high, clear, limit, count, diagonal, diagonalName } = data;
  const text = written(data, index);
  if (isOwn(count, index)) {
    const bare = text.replace(/^\(|\)$/g, "");
    return Number.isNaN(diagonal[index % count]) ? text : [diagonalName, bare].filter(Boolean).join(" ");
  }
  if (Number.isNaN(values[index])) return text;
  const parts = [show(values[index], limit, 1)];
  if (low.length && !Number.isNaN(low[index] + high[index]))
    parts.push(`interval ${show(low[index], limit, 1)} to ${show(high[index], limit, 1)}`);
  if (clear.length) parts.push(clear[index] ? "outside the noise" : "inside the noise");
  return parts.join(", ");
}

/** The further sentences about a cell. @param {Data} data @param {number} index */
function tellDetails({ details, detailValues, count }, index) {
  const each = count ** 2;
  return details.flatMap((sentence, place) => {
    const numbers = detailValues.subarray(place * each, (place + 1) * each);
    if (Number.isNaN(numbers[index])) return [];
    const range = numbers.filter(Number.isFinite).reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
    return [sentence.replace("{}", () => show(numbers[index], range))];
  });
}
