// @ts-check
/** The charts of runs: losses, of what is trained on and of what is held out, learning rate, gradient norm; several runs over each other. */

import uPlot from "../vendor/uPlot.esm.js";
import { h } from "./dom.js";
import { plot } from "./plot.js";
import { said } from "./words.js";

/** @import { Curves, HeldOut, Line, RunState, Translate } from "./types" */

const LEVELS = 9; // colours of noise levels, in their order

/** Make the curves of one run: the loss, raw and smoothed, with a switch to a logarithmic scale; below it what is held out; learning rate and gradient norm. */
/** @param {HTMLElement} host @param {{t: Translate}} given */
export function lossChart(host, { t }) {
  const loss = [
    { label: t("chart.loss"), color: "--anima-raw", alpha: 0.7 },
    { label: t("chart.mean_loss"), color: "--anima-mean", width: 2 },
  ];
  const log = h("button", { class: "anima-switch", type: "button", "aria-pressed": "false", title: t("chart.log.help"), text: t("chart.log") });
  const main = plot(host, loss, { name: t("chart.loss"), axes: true, extra: log });
  const heldOut = heldOutCharts(host, { t });
  const row = h("div", { class: "anima-small-charts" });
  host.append(row);
  const rate = plot(row, [{ label: t("chart.lr"), color: "--anima-rate" }], { name: t("chart.lr") });
  const norm = plot(row, [{ label: t("chart.grad_norm"), color: "--anima-norm" }], { name: t("chart.grad_norm") });
  log.addEventListener("click", () => {
    const pressed = log.getAttribute("aria-pressed") !== "true";
    log.setAttribute("aria-pressed", String(pressed));
    main.scale(pressed);
  });
  return {
    /** @param {Pick<RunState, "columns" | "held_out">} state */
    set({ columns: { step, loss, mean_loss, lr, grad_norm }, held_out }) {
      main.set([step, loss, mean_loss]);
      heldOut.set(held_out);
      rate.set([step, lr]);
      norm.set([step, grad_norm]);
    },
    destroy() {
      for (const one of [main, heldOut, rate, norm]) one.destroy();
    },
  };
}

/** Make the losses of pictures that are not trained on: their mean and its best, the base model's, the average's; folded, a curve for each noise level. */
/** @param {HTMLElement} host @param {{t: Translate}} given */
function heldOutCharts(host, { t }) {
  const sentence = h("p", { class: "anima-quiet" });
  const [mean, levels] = [h("div"), h("details", { class: "anima-levels" }, h("summary", { text: t("chart.levels") }))];
  const element = h("div", { class: "anima-held-out", hidden: true }, mean, sentence, levels);
  host.append(element);
  const [main, each] = [changing(mean, t("chart.held_out")), changing(levels, t("chart.levels"))];
  const shown = {
    held_out: { color: "--anima-held-out", width: 2 },
    ema: { color: "--anima-rate", width: 1 },
    base: { color: "--anima-raw", dash: [4, 4] },
    best: { color: "--anima-best", dot: 9 },
  };
  return {
    /** @param {HeldOut[]} rows */
    set(rows) {
      element.hidden = !rows.length;
      if (!rows.length) return;
      const [last, step] = [rows[rows.length - 1], rows.map((row) => row.step)];
      sentence.textContent = said(t, last.text);
      const best = step.map((one) => (one === last.best_step ? last.best_loss : null));
      const columns = { held_out: rows.map(({ loss }) => loss), ema: rows.map(({ ema }) => ema), base: step.map(() => last.base), best };
      const known = Object.entries(columns).filter(([, column]) => column.some((value) => value != null));
      const line = (/** @type {string} */ name) => ({ label: t(`chart.${name}`), ...shown[/** @type {keyof typeof shown} */ (name)] });
      main.set(known.map(([name]) => line(name)), [step, ...known.map(([, column]) => column)]);
      const color = (/** @type {number} */ i) => `--anima-level-${Math.round((i * (LEVELS - 1)) / Math.max(last.t.length - 1, 1))}`;
      each.set(last.t.map((noise, i) => ({ label: `t ${+noise.toFixed(2)}`, color: color(i) })), [step, ...last.t.map((_, i) => rows.map((row) => row.levels[i] ?? null))]);
    },
    destroy() {
      for (const one of [main, each]) one.destroy();
    },
  };
}

/** Make a chart whose lines may become others: then it is made anew. @param {HTMLElement} host @param {string} name */
function changing(host, name) {
  /** @type {ReturnType<typeof plot> | null} */
  let chart = null;
  let drawn = "";
  return {
    /** @param {Line[]} lines @param {any[][]} columns */
    set(lines, columns) {
      const wanted = lines.map(({ label }) => label).join("/");
      if (wanted !== drawn) chart = (chart?.destroy(), plot(host, lines, { name, axes: true }));
      drawn = wanted;
      chart?.set(columns);
    },
    destroy: () => chart?.destroy(),
  };
}

/** Lay the smoothed losses of several runs over each other. @param {HTMLElement} host @param {Curves} runs @param {{t: Translate}} given */
export function overlay(host, runs, { t }) {
  /** @type {ReturnType<typeof plot> | null} */
  let chart = null;
  const set = (/** @type {Curves} */ shown) => {
    chart?.destroy();
    chart = null;
    if (!shown.length) return;
    const lines = shown.map(({ name }, i) => ({ label: name, color: `--anima-run-${i % 6}`, width: 2 }));
    chart = plot(host, lines, { name: t("chart.mean_loss"), axes: true });
    chart.set(uPlot.join(shown.map(({ columns }) => [columns.step, columns.mean_loss])));
  };
  set(runs);
  return { set, destroy: () => chart?.destroy() };
}
