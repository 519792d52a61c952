// @ts-check
/** The sidebar tab "Anima runs": what trains, what could go on, what is finished; some of them side by side. */

import { figure, h } from "./dom.js";
import { runView } from "./run_view.js";
import { ago, groupRuns, paced } from "./runs.js";
import { percent } from "./state.js";

/** @import { Given, Summary } from "./types" */

const REFRESH = 500; // milliseconds between two readings of the list

/**
 * Make the tab. `refresh` reads the list anew, as when ComfyUI shows the tab again; the element may be taken out and put back.
 * @param {Given} given
 */
export function runsTab(given) {
  const { comfy, server, t } = given;
  /** @type {Summary[]} */
  let runs = [];
  /** @type {Map<string, ReturnType<typeof runRow>>} */
  const rows = new Map();
  /** @type {Set<string>} */
  const chosen = new Set();
  /** @type {ReturnType<typeof runView> | null} */
  let view = null;

  const button = (/** @type {() => void} */ click, text = "") => h("button", { type: "button", class: "anima-button", text, on: { click } });
  const filter = h("input", { type: "search", placeholder: t("runs.filter"), "aria-label": t("runs.filter"), on: { input: () => draw() } });
  const compare = button(() => open([...chosen]));
  const clear = button(() => (chosen.clear(), draw()), t("runs.clear"));
  const bar = h("div", { class: "anima-runs-bar" }, compare, clear);
  const problem = h("p", { class: "anima-error", role: "alert" });
  const list = h("div", {}, h("p", { class: "anima-quiet", text: t("runs.loading") }));
  const page = h("div", {}, h("h2", { text: t("runs.title") }), filter, bar, problem, list);
  const keep = (/** @type {KeyboardEvent} */ event) => ["Delete", "Backspace"].includes(event.key) && event.stopPropagation();
  const element = h("div", { class: "anima-runs", on: { keydown: keep } }, page); // Delete on a button deletes no node of the graph

  const rowOf = (/** @type {Summary} */ run) => {
    const choose = (/** @type {boolean} */ on) => (on ? chosen.add(run.id) : chosen.delete(run.id), draw());
    const row = rows.get(run.id) ?? runRow(given, () => open([run.id]), choose);
    rows.set(run.id, row);
    row.show(run, chosen.has(run.id));
    return row.element;
  };
  const draw = () => {
    const groups = groupRuns(runs, filter.value);
    const focused = document.activeElement;
    const sections = groups.map(({ group, runs }) => {
      const title = h("h3", { text: t(`runs.${group}`) }, h("span", { class: "anima-quiet", text: ` ${runs.length}` }));
      return h("section", { "aria-label": t(`runs.${group}`) }, title, h("ul", {}, ...runs.map(rowOf)));
    });
    const nothing = runs.length ? t("runs.nothing", { filter: filter.value }) : t("runs.empty");
    list.replaceChildren(...(sections.length || problem.textContent ? sections : [h("p", { class: "anima-quiet", text: nothing })]));
    if (focused instanceof HTMLElement && list.contains(focused)) focused.focus();
    filter.hidden = !runs.length;
    bar.hidden = !chosen.size;
    compare.textContent = t(chosen.size < 2 ? "runs.another" : "runs.compare", { n: chosen.size });
    compare.disabled = chosen.size < 2;
  };

  const refresh = async () => {
    try {
      runs = await server.runs();
      problem.textContent = "";
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
    }
    for (const known of [rows, chosen]) for (const id of known.keys()) if (!runs.some((run) => run.id === id)) known.delete(id);
    draw();
  };
  const refreshSoon = paced(refresh, REFRESH);

  const open = (/** @type {string[]} */ ids) => {
    view = runView(given, ids, close);
    element.replaceChildren(view.element);
    view.focus();
  };
  const close = () => {
    const [id] = view?.ids ?? [];
    view?.destroy();
    view = null;
    element.replaceChildren(page);
    rows.get(id)?.focus();
    refresh();
  };

  const hear = (/** @type {string} */ type, /** @type {any} */ detail) => {
    const run = runs.find(({ id }) => id === detail.run);
    const isLive = run?.state === "running" && ["progress", "sample", "held_out"].includes(type);
    if (!isLive) return refreshSoon();
    if (type === "sample") run.picture = detail.sample.file;
    else if (detail.latest) Object.assign(run, { step: detail.latest.step, total: detail.latest.total, loss: detail.latest.mean_loss });
    rows.get(run.id)?.show(run, chosen.has(run.id));
  };
  const off = ["begin", "progress", "sample", "held_out", "saved", "end"].map((type) =>
    comfy.on(`anima_trainer.${type}`, (detail) => (hear(type, detail), view?.hear(type, detail))),
  );
  off.push(comfy.on("reconnected", () => (refreshSoon(), view?.load())));
  const destroy = () => [...off, () => view?.destroy()].forEach((stop) => stop());
  return { element, refresh, destroy };
}

/** Make a run's line in the list, and the box that chooses it for comparing. @param {Given} given @param {() => void} open @param {(on: boolean) => void} choose */
function runRow({ comfy, server, t }, open, choose) {
  const box = h("input", { type: "checkbox", on: { change: () => choose(box.checked) } });
  const picture = h("img", { alt: "", loading: "lazy" });
  const [name, far, when, error] = [h("strong"), h("span"), h("span", { class: "anima-quiet" }), h("span", { class: "anima-error" })];
  const fill = h("span", { class: "anima-fill" });
  const bar = h("span", { class: "anima-bar" }, fill);
  const words = h("span", { class: "anima-runs-words" }, name, far, when, error, bar);
  const button = h("button", { type: "button", on: { click: open } }, h("span", { class: "anima-runs-picture" }, picture), words);
  return {
    element: h("li", {}, button, box),
    focus: () => button.focus(),
    /** @type {(run: Summary, chosen: boolean) => void} */
    show(run, chosen) {
      box.checked = chosen;
      box.ariaLabel = box.title = t("runs.choose", { name: run.name });
      const source = run.picture && server.sampleUrl(run.id, run.picture, 96);
      if (source && picture.getAttribute("src") !== source) picture.src = source;
      picture.hidden = !source;
      name.textContent = name.title = run.name;
      const loss = run.loss != null && t("runs.loss", { loss: figure(run.loss) });
      far.textContent = run.total ? [`${run.step} / ${run.total}`, loss].filter(Boolean).join(" · ") : "…";
      const since = (run.state === "running" && run.started) || run.saved_at; // 0 before its first save
      when.textContent = [since && ago(Date.now() / 1000 - since, comfy.locale()), run.network].filter(Boolean).join(" · ");
      error.textContent = run.error;
      bar.hidden = run.step >= run.total;
      fill.style.width = `${percent(run)}%`;
    },
  };
}
