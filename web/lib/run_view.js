// @ts-check
/** One run, or several side by side: what can be done with it, curves, samples, settings. */

import { lossChart, overlay } from "./chart.js";
import { figure, h } from "./dom.js";
import { whereabouts } from "./panel.js";
import { differingSettings, paced, sampleGrid } from "./runs.js";
import { applyMessage, seed } from "./state.js";

/** @import { Given, Run, RunState, Sample, Translate } from "./types" */

const REDRAW = 500; // milliseconds between two drawings while it trains
const MOST_POINTS = 3000; // above it the curves are asked for again: the server thins them out
const COLUMN = 66; // pixels of a table's column, at least
const SIDE = 256; // pixels of a sample in the grid; a click shows it whole

/**
 * Make the view of some runs, which it reads itself. `hear` takes the websocket's messages, about whatever run.
 * @param {Given} given
 * @param {string[]} ids
 * @param {() => void} back
 */
export function runView(given, ids, back) {
  const { server, t } = given;
  /** @type {RunState[]} */
  let states = [];
  /** @type {[string, any][] | null} messages that come while the runs are being read */
  let meanwhile = null;
  /** @type {ReturnType<typeof chartOf> | null} */
  let chart = null;
  /** @type {Sample[][]} */
  let laidOut = [];

  const backButton = button(`‹ ${t("runs.back")}`, back);
  const [heads, curves, samples] = [h("div"), h("div", { class: "anima-loss" }), h("div")];
  const body = h("div", {}, h("p", { class: "anima-quiet", text: t("runs.loading") }));
  const element = h("div", { class: "anima-runs-view" }, backButton, body);

  const draw = () => {
    const runs = states.map(({ run }) => run);
    heads.replaceChildren(...runs.map((run, i) => head(run, badge(i, runs), t)));
    chart?.show(states);
    if (runs.every(({ pictures }, i) => pictures === laidOut[i])) return; // pictures that are made anew flicker
    laidOut = runs.map(({ pictures }) => pictures);
    samples.replaceChildren(...runs.map((run, i) => gallery(given, run, badge(i, runs))));
  };
  const drawSoon = paced(() => element.isConnected && draw(), REDRAW);
  const apply = (/** @type {string} */ type, /** @type {any} */ detail) => {
    states = states.map((state) => (state.run.id === detail.run ? applyMessage(state, type, detail) : state));
  };

  const load = async () => {
    if (meanwhile) return;
    const messages = (meanwhile = /** @type {[string, any][]} */ ([]));
    try {
      states = await Promise.all(ids.map(async (id) => seed(...(await Promise.all([server.run(id), server.curve(id)])))));
    } catch (error) {
      const told = [h("p", { class: "anima-error", role: "alert", text: message(error) }), button(t("runs.retry"), load)];
      return states.length ? back() : body.replaceChildren(...told); // one that was shown is gone: the list shows what is left
    } finally {
      meanwhile = null;
    }
    for (const told of messages) apply(...told);
    const [runs, shown] = [states.map(({ run }) => run), [curves, h("h3", { text: t("runs.samples") }), samples]];
    if (runs.length > 1) body.replaceChildren(heads, settings(runs, t), ...shown); // what differs explains the curves
    else body.replaceChildren(heads, actions(given, runs[0], back), ...shown, settings(runs, t));
    chart ??= chartOf(curves, states, t);
    draw();
  };
  load();

  return {
    ids,
    element,
    load,
    focus: () => backButton.focus(),
    /** @type {(type: string, detail: any) => void} */
    hear(type, detail) {
      if (!ids.includes(detail.run)) return;
      if (meanwhile) return void meanwhile.push([type, detail]);
      const isLong = states.some(({ columns }) => columns.step.length > MOST_POINTS);
      if (isLong || type === "begin" || type === "end") return void load();
      apply(type, detail);
      drawSoon();
    },
    destroy: () => chart?.destroy(),
  };
}

const message = (/** @type {unknown} */ error) => /** @type {Error} */ (error).message;

/** @type {(text: string, click: () => unknown, help?: string) => HTMLButtonElement} */
const button = (text, click, help) => h("button", { type: "button", class: "anima-button", text, title: help, on: { click } });

const letter = (/** @type {number} */ i) => String.fromCharCode(65 + i);

/** Make a run's letter among several, in the colour of its curve. @type {(i: number, runs: Run[]) => HTMLElement | null} */
function badge(i, runs) {
  const style = { "--anima-key": `var(--anima-run-${i % 6})` }; // the colours of overlay()
  return runs.length < 2 ? null : h("span", { class: "anima-runs-badge", style, text: letter(i) });
}

/** @type {(host: HTMLElement, states: RunState[], t: Translate) => { show: (states: RunState[]) => void, destroy: () => void }} */
function chartOf(host, states, t) {
  if (states.length === 1) {
    const chart = lossChart(host, { t });
    return { show: ([state]) => chart.set(state), destroy: chart.destroy };
  }
  const chart = overlay(host, [], { t });
  const curve = (/** @type {RunState} */ { columns }, /** @type {number} */ i) => ({ name: letter(i), columns });
  return { show: (states) => chart.set(states.map(curve)), destroy: chart.destroy };
}

/** Say what a run is; among several only what tells them apart. @type {(run: Run, badge: Node | null, t: Translate) => HTMLElement} */
function head(run, badge, t) {
  const { state, step, total, loss, network, error, warnings, sentence } = run;
  const far = state === "running" ? whereabouts(run, t) : t(`runs.far.${state}`, { step, total });
  const facts = [far, loss != null && t("runs.loss", { loss: figure(loss) }), network];
  const ended = h("p", { class: error ? "anima-error" : "", text: error ?? sentence });
  const list = h("ul", {}, ...warnings.map((text) => h("li", { text })));
  const warned = h("details", {}, h("summary", { text: t("panel.warnings", { count: warnings.length }) }), list);
  const line = h("p", { class: "anima-quiet", text: facts.filter(Boolean).join(" · ") });
  return h("header", {}, h("h2", { title: run.name }, badge, run.name), line, !badge && ended, !badge && warnings.length > 0 && warned);
}

/** Make the buttons of one run. What the server refuses is told by a toast. @type {(given: Given, run: Run, back: () => void) => HTMLElement} */
function actions({ comfy, server, t }, run, back) {
  const { id, name, lora, step, total } = run;
  const isRunning = run.state === "running";
  const attempt = (/** @type {() => unknown} */ act) => async () => {
    try {
      await act();
    } catch (error) {
      comfy.toast("error", name, message(error));
    }
  };
  const does = (/** @type {string} */ key, /** @type {() => unknown} */ act) => button(t(`runs.${key}`), attempt(act), t(`runs.${key}.help`));

  const steps = h("input", { type: "number", min: step + 1, step: 1, required: true, value: total > step ? total : 2 * step });
  const goOn = attempt(async () => {
    const inputs = { run: name, steps: Number(steps.value) };
    await comfy.queue({ anima_continue: { class_type: "AnimaContinueRun", inputs } });
    form.hidden = true;
    comfy.toast("info", name, t("runs.queued", inputs));
  });
  const submit = (/** @type {Event} */ event) => (event.preventDefault(), goOn());
  const go = h("button", { class: "anima-button", text: t("runs.go") });
  const form = h("form", { hidden: true, on: { submit } }, h("label", {}, t("runs.steps"), steps), go);
  const ask = () => ((form.hidden = !form.hidden), steps.focus());
  const remove = async () => {
    if (!(await comfy.confirm(t("runs.delete.title", { name }), t("runs.delete.text", { name })))) return;
    await server.remove(id, name);
    comfy.toast("success", name, t("runs.deleted"));
    back();
  };
  return h(
    "div",
    { class: "anima-runs-bar", role: "group", "aria-label": name },
    isRunning && does("stop", () => server.command("stop", { run: id })),
    run.can_continue && !isRunning && does("continue", ask),
    run.has_graph && does("graph", async () => comfy.openGraph(await server.graph(id))),
    lora && does("use", () => comfy.addNode("AnimaLoadAdapter", { adapter: lora })),
    !isRunning && does("delete", remove),
    form,
  );
}

/** Lay a run's samples out, step by prompt. A click shows one whole. @type {(given: Given, run: Run, badge: Node | null) => HTMLElement} */
function gallery({ comfy, server, t }, run, badge) {
  const { prompts, rows } = sampleGrid(run.pictures);
  if (!rows.length) return h("p", { class: "anima-quiet" }, badge, t("runs.no_samples"));
  const picture = (/** @type {Sample} */ { file, step, prompt }) => {
    const caption = `${run.name} · ${step} · ${prompt}`;
    const click = () => comfy.enlarge(server.sampleUrl(run.id, file), caption);
    const image = h("img", { src: server.sampleUrl(run.id, file, SIDE), alt: caption, loading: "lazy" });
    return h("button", { type: "button", class: "anima-sample", title: prompt, on: { click } }, image);
  };
  const titles = prompts.map((prompt) => h("th", { scope: "col", title: prompt }, h("span", { text: prompt })));
  const lines = rows.map(({ step, samples }) =>
    h("tr", {}, h("th", { scope: "row", text: step }), ...samples.map((sample) => h("td", {}, sample && picture(sample)))),
  );
  const names = h("tr", {}, h("td", {}, badge), ...titles);
  return table("anima-runs-samples", t("runs.samples"), names, lines);
}

/** Make a table that scrolls sideways when it has many columns. @type {(style: string, name: string, head: HTMLElement, lines: HTMLElement[]) => HTMLElement} */
function table(style, name, head, lines) {
  const width = `${COLUMN * head.children.length}px`;
  const inner = h("table", { style: { "min-width": width } }, h("thead", {}, head), h("tbody", {}, ...lines));
  return h("div", { class: style, role: "group", tabindex: 0, "aria-label": name }, inner);
}

/** Lay settings out: all of one run, closed at first; of several those that differ. @type {(runs: Run[], t: Translate) => HTMLElement} */
function settings(runs, t) {
  const isSeveral = runs.length > 1;
  const rows = differingSettings(runs);
  const title = t(isSeveral ? "runs.differing" : "runs.settings");
  const words = (/** @type {string} */ place) => place.split(/(?<=[._])/).flatMap((word) => [word, h("wbr")]);
  const lines = rows.map(({ place, values }) =>
    h("tr", {}, h("th", { scope: "row" }, ...words(place)), ...values.map((text) => h("td", { text }))),
  );
  const names = h("tr", {}, h("td"), ...runs.map((run, i) => h("th", { scope: "col", title: run.name }, badge(i, runs) ?? run.name)));
  const shown = rows.length ? table("anima-runs-wide", title, names, lines) : h("p", { class: "anima-quiet", text: t("runs.same") });
  return h("details", { class: "anima-runs-settings", open: isSeveral }, h("summary", { text: title }), shown);
}
