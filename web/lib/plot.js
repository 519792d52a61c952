// @ts-check
/** A chart of curves over steps, drawn by uPlot in the colours of ComfyUI's palette. Only the ticks are worked out here. */

import uPlot from "../vendor/uPlot.esm.js";
import { figure, h } from "./dom.js";

/** @import { Drawing, Line } from "./types" */

const FONT = "11px Inter, Arial, sans-serif";

/** Make a chart with a line of text above it: each curve's name and its value under the pointer, else its last. */
/** @param {HTMLElement} host @param {Line[]} lines @param {{name: string, axes?: boolean, extra?: Node}} options */
export function plot(host, lines, { name, axes = false, extra }) {
  const values = lines.map(() => h("b"));
  const under = h("span", { class: "anima-under" });
  const key = (/** @type {string} */ color) => ({ class: "anima-key", style: { "--anima-key": `var(${color})` } });
  const keys = lines.map(({ label, color }, i) => h("span", key(color), label, " ", values[i]));
  const area = h("div", { class: "anima-plot", role: "img", "aria-label": name });
  const root = h("div", { class: axes ? "anima-chart" : "anima-chart anima-chart-small" }, h("div", { class: "anima-legend" }, ...keys, under, extra), area);
  host.append(root);

  /** @type {any[][]} */
  let data = [[], ...lines.map(() => [])];
  let isLog = false;
  /** @type {any} */
  let chart = null;

  const tell = (/** @type {number | null | undefined} */ at) => {
    const known = (/** @type {any[]} */ column) => (at == null ? column.findLast((value) => value != null) : column[at]);
    data.slice(1).forEach((column, i) => (values[i].textContent = figure(known(column))));
    under.textContent = at == null ? "" : `@ ${data[0][at]}`;
  };
  const draw = () => {
    const { clientWidth: width, clientHeight: height } = area;
    if (!width || !height || !data[0].length) return;
    if (chart) chart.setSize({ width, height });
    else chart = /** @type {any} */ (area).chart = new uPlot(options(host, lines, { width, height, axes, isLog, tell }), data, area);
  };
  const sizes = new ResizeObserver(draw);
  sizes.observe(area);
  const palette = new MutationObserver(() => chart?.redraw(false));
  palette.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] }); // where ComfyUI puts its palette
  return {
    /** @param {any[][]} columns the steps, then one column a line */
    set(columns) {
      data = columns;
      tell(null);
      const last = columns[0].at(-1);
      area.setAttribute("aria-label", last == null ? name : `${name}: ${values.map((value) => value.textContent).join(", ")} @ ${last}`);
      if (chart) chart.setData(data);
      else draw();
    },
    /** @param {boolean} log */
    scale(log) {
      isLog = log;
      chart?.destroy();
      chart = null;
      draw();
    },
    destroy() {
      sizes.disconnect();
      palette.disconnect();
      chart?.destroy();
      root.remove();
    },
  };
}

/** Say how uPlot draws the lines. Colours are asked for at every drawing, so that a change of the palette is followed. */
/** @param {HTMLElement} host @param {Line[]} lines @param {Drawing} given */
function options(host, lines, { width, height, axes, isLog, tell }) {
  const color = (/** @type {string} */ name) => () => getComputedStyle(host).getPropertyValue(name).trim();
  const axis = { stroke: color("--anima-text"), font: FONT, ticks: { show: false }, grid: { stroke: color("--anima-grid"), width: 1 } };
  const whole = (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((step) => (Number.isInteger(step) ? short(step) : ""));
  return {
    width,
    height,
    padding: axes ? [6, 16, 0, 0] : [0, 0, 0, 0],
    legend: { show: false },
    scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => roomy(low, high, isLog) } },
    axes: axes
      ? [
          { ...axis, size: 16, gap: 2, space: 50, values: whole },
          { ...axis, size: 40, gap: 2, space: 24, values: labels, ...(isLog ? { splits: (/** @type {any} */ u) => logTicks(u.scales.y.min, u.scales.y.max), filter: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits } : {}) },
        ]
      : [{ show: false }, { show: false }],
    series: [{}, ...lines.map(({ color: name, width = 1, alpha = 1, dash, dot }) => ({ stroke: color(name), width, alpha, dash, spanGaps: true, points: { show: single, ...(dot && { size: dot, fill: color(name) }) } }))],
    cursor: {
      drag: { x: false, y: false },
      y: false,
      points: { size: 5 },
      // ComfyUI zooms the whole node by a transform, which uPlot knows nothing of.
      move: (/** @type {any} */ u, /** @type {number} */ left, /** @type {number} */ top) => {
        const zoom = u.over.getBoundingClientRect().width / u.over.offsetWidth || 1;
        return [left / zoom, top / zoom];
      },
    },
    hooks: {
      setCursor: [(/** @type {any} */ u) => tell(u.cursor.left < 0 ? null : u.cursor.idx)],
      ready: [(/** @type {any} */ u) => u.over.addEventListener("pointerenter", () => u.syncRect())],
    },
  };
}

/** Show the points themselves only where a line needs two. @type {(u: any, series: number) => boolean} */
const single = (u, series) => u.data[series].filter((/** @type {any} */ value) => value != null).length === 1;

/** Return the range of an axis, with a little room. @type {(low: number | null, high: number | null, isLog: boolean) => [number, number]} */
export function roomy(low, high, isLog) {
  if (low == null || high == null) return isLog ? [0.1, 1] : [0, 1];
  if (isLog) return [Math.max(low, high * 1e-6) / 1.1, (high || 1) * 1.1];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** Return round numbers between two positive ones, at most about six. @type {(low: number, high: number) => number[]} */
export function logTicks(low, high) {
  const decades = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) decades.push(power);
  for (const heads of [[1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = decades.flatMap((power) => heads.map((head) => Number(`${head}e${power}`))).filter((tick) => tick >= low && tick <= high);
    if (ticks.length <= 6 || heads.length === 1) return ticks;
  }
  return [];
}

/** @type {(u: any, splits: number[]) => string[]} */
const labels = (_, splits) => splits.map((value) => (Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.001) ? value.toExponential(0) : String(+value.toPrecision(3))));

/** Write a step on an axis: 1500, 20k. @param {number} step */
const short = (step) => (step >= 10000 ? `${+(step / 1000).toFixed(1)}k` : String(step));
