// @ts-check
/** The list of folders of pictures, and the making of one from files of this computer. */

import { h } from "./dom.js";

/** @import { Comfy, Folder, Given } from "./types" */
/** @typedef {{ name: string, why: "kind" | "twice" | "alone" | "below" }} LeftOut */

const PICTURE = /\.(png|jpe?g|webp|bmp|avif|jxl)$/i; // what anima_core/data/listing.py reads
const CAPTION = /\.txt$/i;
const FOLDER = /^(?![. ])[^\\/:*?"<>|\x00-\x1f]{0,99}[^\\/:*?"<>|\x00-\x1f. ]$/; // a name on every system
const AT_ONCE = 4; // uploads side by side
const NAMED = 5; // files that are named; of more the number is told

/**
 * Decide which files of a choice are uploaded: pictures, and the captions of the same names.
 * @param {File[]} files
 * @param {boolean} isNew whether the folder is: one that is there may hold the picture of a caption
 */
export function planUpload(files, isNew) {
  const stem = (/** @type {File} */ { name }) => name.replace(/\.[^.]*$/, "");
  const pictures = files.filter(({ name }) => PICTURE.test(name));
  const stems = new Set(pictures.map(stem));
  const seen = new Set();
  const why = (/** @type {File} */ file) => {
    if (file.webkitRelativePath.split("/").length > 2) return "below";
    if (!PICTURE.test(file.name) && !CAPTION.test(file.name)) return "kind";
    if (CAPTION.test(file.name) && isNew && !stems.has(stem(file))) return "alone";
    const name = file.name.toLowerCase(); // as some disks compare names
    return seen.has(name) ? "twice" : void seen.add(name);
  };
  const judged = files.map((file) => ({ file, why: why(file) }));
  const send = judged.filter(({ why }) => !why).map(({ file }) => file);
  const left = judged.flatMap(({ file, why }) => (why ? /** @type {LeftOut[]} */ ([{ name: file.name, why }]) : []));
  const captions = send.filter(({ name }) => CAPTION.test(name)).length;
  return { send, left, captions, pictures: send.length - captions };
}

/** Tell whether a folder below input can have this name; a `/` makes it a folder within a folder. @param {string} name */
export const isFolderName = (name) => name.split("/").length <= 2 && name.split("/").every((part) => FOLDER.test(part));

/**
 * Upload files into a folder below input, a few at a time. A file that is there under the same name is replaced.
 * @param {Pick<Comfy, "fetchApi">} comfy
 * @param {string} folder
 * @param {File[]} files
 * @param {(done: number) => void} progress
 * @returns {Promise<string[]>} a line for each file that the server did not take
 */
export async function upload(comfy, folder, files, progress) {
  const waiting = [...files];
  /** @type {string[]} */
  const refused = [];
  let done = 0;
  const send = async (/** @type {File} */ file) => {
    const form = new FormData();
    form.append("image", file, file.name); // the stock route writes what it is given, .txt too
    // Without overwrite it names another file of the same name "cat (1).txt", which is the caption of no picture.
    for (const [key, value] of Object.entries({ type: "input", subfolder: folder, overwrite: "true" })) form.append(key, value);
    const answer = await comfy.fetchApi("/upload/image", { method: "POST", body: form }).catch(() => null);
    if (!answer?.ok) refused.push(`${file.name}: ${answer ? (await answer.text()) || `${answer.status} ${answer.statusText}` : "no answer"}`);
    progress(++done);
  };
  const worker = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) await send(file);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return refused;
}

/**
 * Make the chooser. `choose` gets the name that the folder widget takes.
 * @param {Given & { value: string, choose: (name: string) => void }} given
 */
export function folderChooser({ comfy, server, t, value, choose }) {
  /** @type {Folder[]} */
  let folders = [];
  const problem = h("p", { class: "anima-error", role: "alert" });
  const filter = h("input", { type: "search", placeholder: t("folders.filter"), "aria-label": t("folders.filter"), on: { input: () => draw() } });
  const list = h("ul", { "aria-label": t("folders.title"), on: { keydown: moveFocus } });
  const upload = uploader({ comfy, t }, () => folders, choose, () => load());
  const element = h("div", { class: "anima-folders" }, filter, problem, list, upload);

  const draw = () => {
    const shown = folders.filter(({ name }) => name.toLowerCase().includes(filter.value.toLowerCase()));
    const nothing = h("li", { class: "anima-quiet", text: t(folders.length ? "folders.nothing" : "folders.empty") });
    list.replaceChildren(...(shown.length ? shown.map(item) : [nothing]));
  };
  const item = (/** @type {Folder} */ { name, root, pictures, captions, shown }) => {
    const counts = t("folders.counts", { pictures, captions }) + (root === "input" ? "" : ` · ${root}`);
    const words = h("span", { class: "anima-runs-words" }, h("strong", { text: name }), h("span", { class: "anima-quiet", text: counts }));
    const images = shown.map((file) => h("img", { src: server.pictureUrl(name, file), alt: "", loading: "lazy" }));
    return h("li", {}, h("button", { type: "button", "aria-pressed": String(name === value), on: { click: () => choose(name) } }, words, ...images));
  };
  const load = async () => {
    try {
      folders = await server.folders();
      problem.textContent = "";
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
    }
    draw();
  };
  load();
  return { element, destroy() {} };
}

/** Move the focus up and down a list of buttons by the arrow keys. @param {KeyboardEvent} event */
function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const buttons = [.../** @type {HTMLElement} */ (event.currentTarget).querySelectorAll("button")];
  if (!step) return;
  event.preventDefault();
  buttons[buttons.findIndex((button) => button === document.activeElement) + step]?.focus();
}

/**
 * Make the area that takes files, chosen or dropped, and uploads them into a new folder, or into one that is there.
 * @param {Pick<Given, "comfy" | "t">} given
 * @param {() => Folder[]} folders
 * @param {(name: string) => void} choose called when the server took every file
 * @param {() => void} changed
 */
function uploader({ comfy, t }, folders, choose, changed) {
  /** @type {File[]} */
  let files = [];
  const name = h("input", { type: "text", required: true, on: { input: () => draw() } });
  const [plan, omitted, warning] = [h("p"), h("p", { class: "anima-quiet" }), h("p", { class: "anima-error" })];
  const go = h("button", { class: "anima-button", text: t("folders.upload") });
  const bar = h("progress", { "aria-label": t("folders.upload"), hidden: true });
  const chosen = h("div", { hidden: true }, plan, omitted, h("label", {}, t("folders.name"), name), warning, go);
  const said = h("div", { role: "status" });

  const planned = () => {
    const folder = name.value.trim();
    const there = folders().find((one) => one.root === "input" && [folder, `input/${folder}`].includes(one.name));
    return { folder, there, ...planUpload(files, !there) };
  };
  const draw = () => {
    const { folder, there, send, pictures, captions, left } = planned();
    const named = left.slice(0, NAMED).map((file) => `${file.name} (${t(`folders.left.${file.why}`)})`);
    if (left.length > NAMED) named.push(t("folders.more", { n: left.length - NAMED }));
    plan.textContent = t("folders.counts", { pictures, captions });
    omitted.textContent = left.length ? t("folders.left", { files: named.join(", ") }) : "";
    warning.textContent = folder && !isFolderName(folder) ? t("folders.bad") : there ? t("folders.there", { ...there }) : "";
    go.disabled = !send.length || !isFolderName(folder);
  };
  const take = (/** @type {FileList | null | undefined} */ some) => {
    files = [...(some ?? [])];
    const [folder, within] = files[0]?.webkitRelativePath.split("/") ?? [];
    if (within) name.value = folder;
    chosen.hidden = !files.length;
    said.replaceChildren();
    draw();
    name.focus();
  };
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const { folder, send, left } = planned();
    go.disabled = true;
    bar.hidden = false;
    const progress = (/** @type {number} */ done) => Object.assign(bar, { max: send.length, value: done });
    progress(0);
    const refused = await upload(comfy, folder, send, progress);
    bar.hidden = true;
    go.disabled = !refused.length; // what was refused may be sent again
    const told = t("folders.done", { folder, sent: send.length - refused.length, refused: refused.length, left: left.length });
    said.replaceChildren(told, ...refused.slice(0, NAMED).map((text) => h("p", { class: "anima-error", text })));
    changed();
    if (refused.length && said.isConnected) return;
    comfy.toast(refused.length ? "error" : "success", folder, told);
    if (said.isConnected) choose(folder); // else the chooser was closed meanwhile
  };
  const picker = (/** @type {string} */ key, /** @type {object} */ more) => {
    const input = h("input", { type: "file", multiple: true, hidden: true, on: { change: () => take(input.files) }, ...more });
    return [input, h("button", { type: "button", class: "anima-button", text: t(key), on: { click: () => input.click() } })];
  };
  const over = (/** @type {DragEvent} */ event) => (event.preventDefault(), event.stopPropagation()); // ComfyUI opens a picture as a workflow
  const drop = (/** @type {DragEvent} */ event) => (over(event), take(event.dataTransfer?.files));
  const pickers = [...picker("folders.files", { accept: "image/*,.jxl,.txt" }), ...picker("folders.whole", { webkitdirectory: true })];
  const form = { class: "anima-folders-upload", on: { submit, dragover: over, drop } };
  const drops = h("p", { class: "anima-quiet", text: t("folders.drop") });
  return h("form", form, h("h3", { text: t("folders.new") }), drops, h("div", { class: "anima-runs-bar" }, ...pickers), chosen, bar, said);
}
