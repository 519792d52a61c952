// @ts-check
/** The routes of this pack, one function each. The server holds the state; nothing is kept here. */

/** @import { Comfy, Curve, Folder, Run, Summary, Target, Word } from "./types" */

const ROOT = "/anima_trainer";

/** Connect to the server. What fails throws Error with the line that the server answered. @param {Pick<Comfy, "fetchApi" | "url">} comfy */
export function connect({ fetchApi, url }) {
  /** @type {(path: string, init?: RequestInit) => Promise<any>} */
  const ask = async (path, init) => {
    const answer = await fetchApi(ROOT + path, init).catch(() => {
      throw new Error("the server does not answer; check that ComfyUI is running");
    });
    const body = await answer.json().catch(() => null);
    if (!answer.ok || !body) throw new Error(body?.error ?? `${ROOT}${path}: ${answer.status} ${answer.statusText}${answer.ok ? ", but no JSON" : ""}`);
    return body;
  };
  const post = (/** @type {string} */ path, /** @type {object} */ body) =>
    ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const safe = encodeURIComponent;

  return {
    /** @returns {Promise<{running: string[], runs: Summary[]}>} */
    running: () => ask("/running"),
    /** @returns {Promise<Summary[]>} running first, then the newest */
    runs: async () => (await ask("/runs")).runs,
    /** @type {(id: string) => Promise<Run>} */
    run: (id) => ask(`/runs/${safe(id)}`),
    /** @type {(id: string, points?: number) => Promise<Curve>} */
    curve: (id, points = 1000) => ask(`/runs/${safe(id)}/curve?points=${points}`),
    /** @type {(id: string, file: string, side?: number) => string} without a side: the picture as it is */
    sampleUrl: (id, file, side) => url(`${ROOT}/runs/${safe(id)}/samples/${safe(file)}${side ? `?side=${side}` : ""}`),
    /** @type {(id: string) => Promise<object>} the workflow that made it */
    graph: (id) => ask(`/runs/${safe(id)}/graph`),
    /** @type {(word: Word, target: Target) => Promise<Record<string, string[]>>} */
    command: (word, target) => post(`/${word}`, target),
    /** @type {(id: string, name: string) => Promise<{deleted: string}>} */
    remove: (id, name) => post(`/runs/${safe(id)}/delete`, { name }),
    /** @returns {Promise<Folder[]>} */
    folders: async () => (await ask("/folders")).folders,
    /** @type {(kind: string, name: string) => Promise<string>} what a file of a loader's list is */
    describe: async (kind, name) => (await ask(`/describe?kind=${safe(kind)}&name=${safe(name)}`)).text,
    /** @type {(folder: string, file: string, side?: number) => string} */
    pictureUrl: (folder, file, side = 96) => url(`${ROOT}/folders/picture?folder=${safe(folder)}&file=${safe(file)}&side=${side}`),
  };
}
