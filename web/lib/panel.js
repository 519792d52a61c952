// @ts-check
/** The live panel on a training node: progress, curves, figures, samples, and the buttons that a training obeys. */

import { lossChart } from "./chart.js";
import { clock, figure, h } from "./dom.js";
import { bySteps, percent } from "./state.js";

/** @import { Given, Part, Run, RunState, Sample, Translate, Word } from "./types" */

const WORDS = /** @type {const} */ (["stop", "save", "preview", "cancel"]);
const PLOT_HEIGHT = 120; // of the loss chart, at least
const SAMPLE_SIDE = 256;

/** Make the panel. `resized` is called when it needs another height than before. @param {Given & {resized?: () => void}} given */
export function trainPanel({ comfy, server, t, resized = () => {} }) {
  const parts = [heading(t), curves(t), figures(t), samples({ comfy, server, t }), outcome(t), commands({ server, t })];
  const empty = h("p", { class: "anima-quiet", text: t("panel.empty") });
  const inner = h("div", { class: "anima-inner" }, empty);
  // Keys on a button are no shortcuts of the graph: Delete would delete the node. Those with Ctrl, as Run, go on.
  const keep = (/** @type {KeyboardEvent} */ event) => event.ctrlKey || event.metaKey || event.stopPropagation();
  const element = h("section", { class: "anima-panel", "aria-label": t("panel.name"), on: { keydown: keep } }, inner);
  let height = 0;

  const measure = () => {
    if (!inner.offsetWidth) return; // not shown: what it needs is not known
    const plot = /** @type {HTMLElement | null} */ (inner.querySelector(".anima-loss .anima-plot"));
    const needed = inner.offsetHeight - (plot?.offsetHeight ? plot.offsetHeight - PLOT_HEIGHT : 0);
    if (needed === height) return;
    height = needed;
    resized();
  };
  const sizes = new ResizeObserver(measure);
  for (const watched of [inner, ...parts.map((part) => part.element)]) sizes.observe(watched);

  return {
    element,
    /** Return the height that its content needs, in pixels. */
    height: () => height,
    /** @param {RunState | null} state */
    show(state) {
      const wanted = state ? parts.map((part) => part.element) : [empty];
      if (inner.firstChild !== wanted[0]) inner.replaceChildren(...wanted);
      element.classList.toggle("anima-empty", !state);
      inner.classList.toggle("anima-stretched", Boolean(state?.columns.step.length));
      if (state) for (const part of parts) part.show(state);
      measure();
    },
    destroy() {
      sizes.disconnect();
      for (const part of parts) part.destroy?.();
    },
  };
}

/** Make the line with the run's name and how far it is, and the bar. @type {(t: Translate) => Part} */
function heading(t) {
  const name = h("b", { class: "anima-name" });
  const place = h("span", { class: "anima-place" });
  const fill = h("div", { class: "anima-fill" });
  const bar = h("div", { class: "anima-bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": t("panel.progress") }, fill);
  return {
    element: h("div", {}, h("div", { class: "anima-head" }, name, place), bar),
    show({ run }) {
      name.textContent = name.title = run.name;
      place.textContent = whereabouts(run, t);
      const { progress } = run;
      const done = progress && !run.latest ? percent({ step: progress.done, total: progress.total }) : percent(run);
      fill.style.width = `${done}%`;
      bar.setAttribute("aria-valuenow", String(done));
      bar.dataset.state = run.state;
    },
  };
}

/** Say how far a run is: the step, and what is done beside or before the steps. @type {(run: Run, t: Translate) => string} */
export function whereabouts({ step, total, progress, latest }, t) {
  const at = t("panel.step", { step, total });
  if (!progress) return at;
  const { stage, done, total: all, picture, pictures } = progress;
  const known = t(`stage.${stage}`);
  const name = known.startsWith("stage.") ? stage : known;
  if (picture) return `${at} · ${t("panel.picture", { name, picture, pictures })}`;
  return latest ? `${at} · ${name} ${done} / ${all}` : `${name} ${done} / ${all}`;
}

/** Make the charts; there is nothing of them before the first step. @type {(t: Translate) => Part} */
function curves(t) {
  const element = h("div", { class: "anima-loss", hidden: true });
  const chart = lossChart(element, { t });
  return {
    element,
    show(state) {
      element.hidden = !state.columns.step.length;
      chart.set(state);
    },
    destroy: chart.destroy,
  };
}

/** Make the tiles of figures, and the line on what the blocks keep. @type {(t: Translate) => Part} */
function figures(t) {
  /** @type {Record<string, HTMLElement>} */
  const shown = {};
  const tile = (/** @type {string} */ name) => h("div", {}, h("dt", { text: t(`panel.${name}`) }), (shown[name] = h("dd")));
  const tiles = h("dl", { class: "anima-figures" }, ...["eta", "seconds", "speed", "memory"].map(tile));
  const plan = h("p", { class: "anima-quiet anima-plan" });
  return {
    element: h("div", {}, tiles, plan),
    show({ run }) {
      const { latest } = run;
      tiles.hidden = !latest;
      shown.eta.textContent = run.state === "running" ? clock(latest?.eta) : "—";
      shown.seconds.textContent = figure(latest?.seconds, 2);
      shown.speed.textContent = figure(latest?.pictures_per_second, 2);
      shown.memory.textContent = latest?.peak_gb ? `${figure(latest.peak_gb, 1)} GB` : "—";
      plan.hidden = !run.plan;
      plan.textContent = run.plan ?? "";
    },
  };
}

/** Make the samples of one step side by side, and a slider over the steps. @type {(given: Given) => Part} */
function samples({ comfy, server, t }) {
  const at = h("output");
  const slider = h("input", { type: "range", min: 0, "aria-label": t("panel.samples.step") });
  const strip = h("div", { class: "anima-strip", role: "group", "aria-label": t("panel.samples") });
  const element = h("div", { class: "anima-samples", hidden: true }, h("div", { class: "anima-slide" }, h("span", { text: t("panel.samples") }), slider, at), strip);
  let run = "";
  let drawn = "";
  /** @type {ReturnType<typeof bySteps>} */
  let steps = [];

  const draw = () => {
    const { step, pictures } = steps[Number(slider.value)];
    at.textContent = t("panel.at", { step });
    slider.setAttribute("aria-valuetext", t("panel.at", { step }));
    const now = [run, ...pictures.map(({ file }) => file)].join("/");
    if (now === drawn) return;
    drawn = now;
    strip.replaceChildren(...pictures.map(picture));
  };
  const picture = (/** @type {Sample} */ { file, prompt, step }) => {
    const caption = `${t("panel.at", { step })} · ${prompt}`;
    const open = () => comfy.enlarge(server.sampleUrl(run, file), caption);
    const image = h("img", { src: server.sampleUrl(run, file, SAMPLE_SIDE), alt: caption, loading: "lazy" });
    return h("button", { type: "button", class: "anima-sample", title: caption, on: { click: open } }, image);
  };
  slider.addEventListener("input", draw);

  return {
    element,
    show(state) {
      const wasLast = state.run.id !== run || Number(slider.value) >= steps.length - 1;
      run = state.run.id;
      steps = bySteps(state.run.pictures);
      element.hidden = !steps.length;
      if (element.hidden) return;
      slider.max = String(steps.length - 1);
      slider.disabled = steps.length < 2;
      if (wasLast) slider.value = slider.max;
      draw();
    },
  };
}

/** Make the lines that say how it went: the server's sentence, an error, warnings. @type {(t: Translate) => Part} */
function outcome(t) {
  const sentence = h("p", { class: "anima-sentence" });
  const title = h("summary");
  const list = h("ul");
  const warnings = h("details", { class: "anima-warnings" }, title, list);
  const element = h("div", {}, sentence, warnings);
  return {
    element,
    show({ run }) {
      const text = run.state === "running" ? "" : (run.error ?? run.sentence ?? t(`panel.is.${run.state}`, { step: run.step, total: run.total }));
      sentence.hidden = !text;
      sentence.textContent = text;
      sentence.classList.toggle("anima-error", Boolean(run.error));
      warnings.hidden = !run.warnings.length;
      element.hidden = sentence.hidden && warnings.hidden;
      title.textContent = t("panel.warnings", { count: run.warnings.length });
      list.replaceChildren(...run.warnings.map((text) => h("li", { text })));
    },
  };
}

/** Make the four buttons, and the line that says what was asked for and done. @type {(given: Pick<Given, "server" | "t">) => Part} */
function commands({ server, t }) {
  const said = h("p", { class: "anima-quiet", role: "status" });
  let run = "";
  /** @type {RunState["note"]} */
  let note = null;

  const say = (/** @type {string} */ text, isError = false) => {
    said.textContent = text;
    said.hidden = !text;
    said.classList.toggle("anima-error", isError);
  };
  const ask = async (/** @type {Word} */ word) => {
    say(t(`panel.${word}.asked`));
    await server.command(word, { run }).catch((error) => say(error.message, true));
  };
  const buttons = WORDS.map((word) =>
    h("button", { type: "button", class: `anima-button anima-${word}`, title: t(`panel.${word}.help`), text: t(`panel.${word}`), on: { click: () => ask(word) } }),
  );
  const row = h("div", { class: "anima-buttons", role: "group", "aria-label": t("panel.commands") }, ...buttons);
  const element = h("div", {}, row, said);
  return {
    element,
    show(state) {
      const isRunning = state.run.state === "running";
      element.hidden = !isRunning;
      if (state.run.id !== run || !isRunning) say("");
      if (state.note && state.note !== note && isRunning) say(t(state.note.key, state.note.values));
      run = state.run.id;
      note = state.note;
    },
  };
}
