// @ts-check
/// <reference path="base.js" />
// Numbers of the drawing: the smoothing, axes and their ticks, places in increasing steps, and numbers in words.

/**
 * @typedef {{from: number, to: number, log: boolean}} Axis
 * @typedef {Line & {strong: Float32Array, faint: boolean, raw: Line | null, dash: number, colour: string}} Drawn
 *   a line as it is drawn: `strong` is what it goes through, over `x`
 */

const DASHES = ["", "7 4", "2 4", "9 4 2 4"];
const OFF = 1.5; // steps; a mean over fewer is the line itself

/** How many steps a line's points stand for. @param {Line} line */
function stepsOf({ counts, x }) {
  return counts ? counts.reduce((sum, count) => sum + count, 0) : x.length;
}

/** Over how many steps the strong lines are a mean. @param {Line} line @param {number} span */
function widthOf(line, span) {
  return Math.max(1, span * stepsOf(line));
}

/** Debiased exponential mean over about `width` steps: each value weighs less with every step since, and the weights
 * that there are sum to 1. A point that is the mean of several steps counts as that value, that many times.
 * @param {Line} line @param {number} width */
function smoothed({ y, counts }, width) {
  const keep = 1 - 1 / width;
  const found = new Float32Array(y.length);
  let [total, weight] = [0, 0];
  for (let at = 0; at < y.length; at += 1) {
    const count = counts ? counts[at] : 1;
    const [faded, fresh] = [keep ** count, width * (1 - keep ** count)]; // the sum of `count` weights
    if (Number.isFinite(y[at])) [total, weight] = [faded * total + fresh * y[at], faded * weight + fresh];
    found[at] = Number.isFinite(y[at]) ? total / weight : NaN;
  }
  return found;
}

/** The lines with what the reader's smoothing makes of them. @param {Data} data @param {number} span @returns {Drawn[]} */
function prepared(data, span) {
  const seen = /** @type {Map<string, number>} */ (new Map()); // lines of a task in a panel, so as to tell them apart
  return data.lines.map((line) => {
    const mean = line.role === "mean";
    const raw = mean ? data.lines.find((other) => other.role === "raw" && other.panel === line.panel
      && other.owner === line.owner) ?? null : null;
    const key = `${line.panel} ${line.owner} ${line.role}`;
    const rank = seen.get(key) ?? 0;
    seen.set(key, rank + 1);
    const width = widthOf(line, span);
    // Without smoothing the line is that of the steps themselves, which long runs send by their extremes.
    const own = mean && width < OFF && raw ? { x: raw.x, strong: raw.y } : null;
    return { ...line, x: line.x, strong: mean ? smoothed(line, width) : line.y, ...own, raw, faint: line.role === "raw",
      dash: rank + (line.owner < 0 ? 0 : earlier(data.colours, line.owner)), colour: data.colours[line.owner] ?? "" };
  });
}

/** How many tasks before this one have its colour. @param {string[]} colours @param {number} task */
function earlier(colours, task) {
  return colours.slice(0, task).filter((colour) => colour === colours[task]).length;
}

/** Place of the last step that is not after `step`; the first where all are. @param {Float64Array | number[]} x
 * @param {number} step */
function lastAt(x, step) {
  let [low, high] = [0, x.length];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
}

/** Place of the step nearest to `step`. @param {number[]} x @param {number} step */
function nearestAt(x, step) {
  const at = lastAt(x, step);
  return at + 1 < x.length && x[at + 1] - step < step - x[at] ? at + 1 : at;
}

/** All steps at which a line has a point, in order. @param {Line[]} lines */
function stops(lines) {
  const found = new Set(/** @type {number[]} */ ([]));
  for (const { x } of lines) for (const step of x) found.add(step);
  return [...found].sort((a, b) => a - b);
}

/** The least and the greatest of what is shown within some steps. @param {Drawn[]} lines @param {Axis} steps
 * @param {boolean} positive */
function endsOf(lines, { from, to }, positive) {
  let [low, high] = [Infinity, -Infinity];
  for (const line of lines)
    for (let at = 0; at < line.x.length; at += 1) {
      if (line.x[at] < from || line.x[at] > to) continue;
      for (const value of [line.strong[at], line.low?.[at] ?? NaN, line.high?.[at] ?? NaN]) {
        if (!Number.isFinite(value) || (positive && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
  return [low, high];
}

/** The axis of values. @param {string} kind @param {Drawn[]} lines @param {Axis} steps @param {boolean} log
 * @returns {Axis} */
function valueAxis(kind, lines, steps, log) {
  const [low, high] = endsOf(lines, steps, log);
  if (kind === "share") return { from: -0.03, to: 1.05, log: false };
  if (low > high) return log ? { from: 0.1, to: 1, log } : { from: 0, to: 1, log };
  if (log) return { from: low / 1.12, to: high * 1.12, log };
  if (kind === "loss") return { from: Math.min(0, 1.05 * low), to: 1.05 * high || 1, log };
  const room = 0.07 * (high - low) || 0.1 * Math.abs(high) || 1;
  return { from: low - room, to: high + room, log };
}

/** From a value to pixels. @param {Axis} axis @param {number} start @param {number} end */
function scaled({ from, to, log }, start, end) {
  const of = log ? Math.log : (/** @type {number} */ value) => value;
  const [low, high] = [of(from), of(to)];
  return (/** @type {number} */ value) => start + ((of(value) - low) / (high - low)) * (end - start);
}

/** Round numbers along an axis, about `count` of them. @param {Axis} axis @param {number} count @param {number} [least] */
function ticks({ from, to, log }, count, least = 0) {
  if (log && to / from > 8) return logTicks(from, to, count);
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, power * ([1, 2, 5].find((nice) => nice * power >= rough) ?? 10));
  const found = [];
  for (let at = Math.ceil(from / step); at * step <= to * (1 + 1e-12); at += 1) found.push(at * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

/** Powers of ten, with their halves and doubles where there is room. @param {number} from @param {number} to
 * @param {number} count */
function logTicks(from, to, count) {
  const decades = Math.log10(to / from);
  const [parts, every] = [decades * 3 <= count + 3 ? [1, 2, 5] : [1], Math.max(1, Math.ceil(decades / count))];
  const found = [];
  for (let power = Math.floor(Math.log10(from)); 10 ** power <= to; power += 1)
    if (power % every === 0) for (const part of parts) found.push(Number(`${part}e${power}`));
  return found.filter((value) => value >= from && value <= to);
}

/** A tick in words. @param {number} value @param {string} kind */
function tick(value, kind) {
  if (kind === "share") return `${Math.round(100 * value)} %`;
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4)) return value.toExponential();
  return value.toLocaleString("en-US", { maximumSignificantDigits: 6 });
}

/** A value in words. @param {number} value @param {string} kind */
function spoken(value, kind) {
  if (!Number.isFinite(value)) return "no value";
  if (kind === "share") return `${(100 * value).toFixed(1)} %`;
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(2);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : Math.abs(value) >= 1 ? value.toPrecision(4) : value.toFixed(3);
}
