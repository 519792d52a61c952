// @ts-check
/** Hangs the pages into ComfyUI: panel, sidebar tab, commands, toasts, folder button, colours. No other file touches ComfyUI. */

// @ts-ignore: ComfyUI serves it
import { api } from "../../scripts/api.js";
// @ts-ignore: ComfyUI serves it
import { app } from "../../scripts/app.js";
import { modal } from "./lib/dialog.js";
import { h } from "./lib/dom.js";
import { folderChooser } from "./lib/folders.js";
import { runsTab } from "./lib/history.js";
import { trainPanel } from "./lib/panel.js";
import { connect } from "./lib/server.js";
import { nodeOf, percent } from "./lib/state.js";
import { watch } from "./lib/watch.js";
import { translator } from "./lib/words.js";

/** @import { Comfy, Table, Translate, Word } from "./lib/types" */

const TRAINERS = ["AnimaTrain", "AnimaTrainFromTOML", "AnimaContinueRun", "AnimaSweep"];
const SOCKETS = ["TRANSFORMER", "VAE", "QWEN", "T5_TOKENIZER", "DATASET", "NETWORK", "OPTIMIZER", "SAMPLES"].map((name) => `ANIMA_${name}`);
const SAME_FILE = new Map([["unet_name", "transformer"], ["clip_name", "qwen"], ["vae_name", "vae"]]); // widgets of stock loaders, of AnimaLoader
const LISTS = new Map([["transformer", "diffusion_models"], ["vae", "vae"], ["qwen", "text_encoders"]]); // widgets of our loaders, the server's kinds
const TAB = "anima-runs";
const REMEMBERED = "anima_run"; // a node's property: "<its id> <id of the run that it trained last>"
const KINDS = /** @type {const} */ ({ done: "success", kept: "info", cancelled: "warn", failed: "error" });

/** @type {Comfy} */
const comfy = {
  fetchApi: (path, init) => api.fetchApi(path, init),
  url: (path) => api.apiURL(path),
  on(type, listener) {
    const heard = (/** @type {CustomEvent} */ event) => listener(event.detail);
    api.addEventListener(type, heard);
    return () => api.removeEventListener(type, heard);
  },
  toast(kind, title, detail) {
    const { toast } = app.extensionManager;
    if (toast.add) toast.add({ severity: kind, summary: title, detail, life: kind === "error" ? undefined : 8000 });
    else toast[kind === "warn" ? "warning" : kind](title, { description: detail }); // the newer frontends' way
  },
  locale: () => app.extensionManager?.setting?.get("Comfy.Locale") ?? "en",
  async queue(prompt) {
    const body = JSON.stringify({ prompt, client_id: api.clientId });
    const answer = await api.fetchApi("/prompt", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const { error } = await answer.json();
    if (error) throw new Error(error.message ?? error);
  },
  openGraph: (workflow) => app.loadGraphData(workflow, true, true, null),
  async addNode(type, values) {
    await app.refreshComboInNodes?.();
    const { canvas } = app;
    const node = /** @type {any} */ (window).LiteGraph.createNode(type);
    const [x, y, width, height] = canvas.visible_area ?? [0, 0, 0, 0];
    node.pos = [x + width / 2 - node.size[0] / 2, y + height / 2 - node.size[1] / 2];
    canvas.graph.add(node);
    for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
    canvas.selectNode?.(node);
  },
  confirm: async (title, text) => Boolean(await app.extensionManager.dialog.confirm({ title, message: text, type: "delete" })),
  enlarge: (url, caption) => void modal(h("figure", {}, h("img", { src: url, alt: caption })), { title: caption, close: t("page.close"), wide: true }),
};

/** @type {(path: string) => Promise<Table>} a file that a former version left in the browser is not taken */
const load = async (path) => (await fetch(new URL(path, import.meta.url), { cache: "no-cache" })).json();
const words = Object.fromEntries(await Promise.all(["en", "zh"].map(async (language) => [language, await load(`./words/${language}.json`)])));
/** @type {Translate} */
const t = (key, values) => translator(words[comfy.locale()] ?? {}, words.en)(key, values);
const server = connect(comfy);
const given = { comfy, server, t };
const runs = watch(given);
/** @type {Map<any, ReturnType<typeof trainPanel>>} */
const panels = new Map();

/** Put the panel on a training node, as its last widget. @param {any} node */
function addPanel(node) {
  const margin = 6;
  const panel = trainPanel({ ...given, resized: () => node.graph?.setDirtyCanvas?.(true, true) });
  const getMinHeight = () => panel.height() + 2 * margin;
  const widget = node.addDOMWidget("anima_panel", "anima_panel", panel.element, { serialize: false, hideOnZoom: false, margin, getMinHeight, getValue: () => "", setValue: () => {} });
  widget.serialize = false;
  panels.set(node, panel);
  after(node, "onRemoved", () => (panel.destroy(), panels.delete(node)));
  panel.show(null);
  after(node, "onConfigure", async () => {
    const run = remembered(node);
    if (run && (await runs.follow(run))) panels.get(node)?.show(runs.get(run) ?? null);
  });
}

/** Run something after a method of a node. @type {(node: any, method: string, more: (first: any) => void) => void} */
function after(node, method, more) {
  const before = node[method];
  node[method] = function (/** @type {any[]} */ ...given) {
    const returned = before?.apply(this, given);
    more(given[0]);
    return returned;
  };
}

/** @param {any} node */
function remembered(node) {
  const [id, run] = String(node.properties?.[REMEMBERED] ?? "").split(" ");
  return id === String(node.id) ? run : undefined; // a copy of a node has trained nothing yet
}

/** Show a run where it belongs: on the node that trains it, if that is of the workflow that is open, and wherever it is remembered. @param {any} run */
function show({ id, node: executed, graph }) {
  const node = executed && (!graph || graph === app.rootGraph?.id) ? nodeOf(app.rootGraph, executed) : null;
  if (panels.has(node)) node.properties[REMEMBERED] = `${node.id} ${id}`;
  for (const [shown, panel] of panels) if (remembered(shown) === id) panel.show(runs.get(id) ?? null);
}

runs.changed(badge);
runs.changed(({ run }) => show(run));

/** Write how far the trainings are on the sidebar's icon. */
function badge() {
  const tab = app.extensionManager?.getSidebarTabs?.().find((/** @type {any} */ one) => one.id === TAB);
  const [first] = runs.running();
  const text = first ? `${percent(first.run)}%` : null;
  if (tab && tab.iconBadge !== text) tab.iconBadge = text;
}

comfy.on("anima_trainer.end", async ({ run, node, graph, name, outcome, sentence }) => {
  if (await runs.follow(run)) show({ id: run, node, graph }); // one that was trained before ends without a beginning
  if (outcome in KINDS) comfy.toast(KINDS[/** @type {keyof typeof KINDS} */ (outcome)], t(`page.${outcome}`, { name: name || t("panel.name") }), sentence);
});
comfy.on("reconnected", () => runs.refresh());
comfy.on("execution_error", ({ node_type: type, exception_message: line }) => {
  if (!type?.startsWith("Anima") || TRAINERS.includes(type)) return; // a training tells its end itself
  comfy.toast("error", t("page.failed", { name: /** @type {any} */ (window).LiteGraph.registered_node_types[type]?.title ?? type }), line.trim());
});

/** Tell every training to do something. @param {Word} word */
async function command(word) {
  const running = (await server.running()).runs;
  if (!running.length) comfy.toast("info", t("page.none"));
  for (const { id, name } of running) {
    const asked = () => comfy.toast("info", name, t(`panel.${word}.asked`));
    await server.command(word, { run: id }).then(asked, (error) => comfy.toast("error", name, error.message));
  }
}

/** Put a button below a node's text widget `folder` that opens the chooser; the widget stays what it is. @param {any} node */
function addFolderButton(node) {
  const at = node.widgets.findIndex((/** @type {any} */ widget) => widget.name === "folder");
  if (at < 0) return;
  const folder = node.widgets[at];
  const choose = () => {
    const chooser = folderChooser({
      ...given,
      value: folder.value,
      choose(name) {
        folder.value = name;
        folder.callback?.(name);
        node.graph?.setDirtyCanvas?.(true, true);
        close();
      },
    });
    const close = modal(chooser.element, { title: t("page.folder"), close: t("page.close"), closed: chooser.destroy });
  };
  const button = node.addWidget("button", "choose_folder", null, choose, { serialize: false });
  Object.assign(button, { label: t("page.folder"), tooltip: t("page.folder.help"), serialize: false });
  node.widgets.splice(at + 1, 0, ...node.widgets.splice(node.widgets.indexOf(button), 1));
  // ComfyUI leaves a hole for a widget that is not saved, but reads the values back without one.
  after(node, "onSerialize", (saved) => (saved.widgets_values = saved.widgets_values?.filter(() => true)));
}

/** Name the choices of a node's dropdowns in the page's language; what is chosen stays what the server knows. @param {any} node */
function nameChoices(node) {
  for (const { type, options } of node.widgets ?? []) {
    if (type === "combo" && options) options.getOptionLabel = (/** @type {any} */ value) => words[comfy.locale()]?.[`choice.${value}`] ?? String(value ?? "");
  }
}

/** Tell below a loader what the files are that are chosen in it, when a choice changes, as ComfyUI tells a progress. @param {any} node */
function describeChoices(node) {
  const chosen = (node.widgets ?? []).filter((/** @type {any} */ { name }) => LISTS.has(name));
  const tell = async () => {
    const asked = chosen.map((/** @type {any} */ { name, value }) => server.describe(LISTS.get(name) ?? "", value).catch((error) => error.message));
    api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text: (await Promise.all(asked)).join("\n") });
  };
  for (const widget of chosen) after(widget, "callback", tell);
}

/** Choose the server's files (`fitting` of AnimaLoader) in place of those that a template says where to get; others are somebody's. @param {any} node */
function chooseOwnFiles(node) {
  const named = (node.properties?.models ?? []).map((/** @type {any} */ { name }) => name);
  const files = /** @type {any} */ (window).LiteGraph.registered_node_types.AnimaLoader.nodeData.input.required;
  for (const widget of node.widgets ?? []) {
    const [own, choices] = [files[SAME_FILE.get(widget.name) ?? widget.name]?.[1]?.fitting, widget.options?.values ?? []];
    if (named.includes(widget.value) && !choices.includes(widget.value) && choices.includes(own)) widget.value = own;
  }
}

/** Give the sockets and links of this pack their colours; style.css has them. ComfyUI forgets them when its palette changes. */
function colourSockets() {
  const style = getComputedStyle(document.documentElement);
  const tables = [app.canvas?.default_connection_color_byType, /** @type {any} */ (window).LGraphCanvas?.link_type_colors];
  for (const type of SOCKETS) {
    const colour = style.getPropertyValue(`--color-datatype-${type}`).trim();
    for (const table of tables) if (table && colour) table[type] = colour;
  }
  app.canvas?.setDirty?.(true, true);
}

/** Show the runs in the sidebar. */
function addTab() {
  /** @type {ReturnType<typeof runsTab> | null} */
  let tab = null;
  app.extensionManager.registerSidebarTab({
    id: TAB, icon: "pi pi-chart-line", title: t("page.runs"), tooltip: t("page.runs"), type: "custom", iconBadge: null,
    render(/** @type {HTMLElement} */ host) {
      if (tab && host.contains(tab.element)) return; // it is called more than once
      tab ??= runsTab(given);
      host.replaceChildren(tab.element);
      tab.refresh();
    },
    destroy: () => void (tab?.destroy(), (tab = null)),
  });
}

document.head.append(h("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href, on: { load: colourSockets } }));

app.registerExtension({
  name: "AnimaTrainer",
  commands: [
    ...(/** @type {const} */ (["stop", "save", "preview"])).map((word) => ({ id: `AnimaTrainer.${word}`, label: () => t(`page.${word}`), function: () => command(word) })),
    { id: "AnimaTrainer.runs", label: () => t("page.runs.open"), function: () => app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`) },
  ],
  nodeCreated(/** @type {any} */ node) {
    if (TRAINERS.includes(node.comfyClass)) addPanel(node);
    if (["AnimaDatasetFolder", "AnimaFolderPictures"].includes(node.comfyClass)) addFolderButton(node);
    if (node.comfyClass?.startsWith("Anima")) [nameChoices, describeChoices].forEach((add) => add(node));
  },
  loadedGraphNode(/** @type {any} */ node) {
    if (node.graph?.nodes.some((/** @type {any} */ { type }) => type === "AnimaLoader")) chooseOwnFiles(node);
  },
  setup() {
    addTab();
    colourSockets();
    new MutationObserver(colourSockets).observe(document.documentElement, { attributes: true, attributeFilter: ["style"] });
    void runs.refresh();
  },
  afterConfigureGraph: () => void runs.refresh(),
});
