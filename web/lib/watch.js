// @ts-check
/** Follows runs: what the server holds, merged with its messages, so that a reload, a late visitor or a lost connection misses nothing. */

import { applyMessage, seed } from "./state.js";

/** @import { Comfy, RunState, Server } from "./types" */

const MESSAGES = ["begin", "progress", "sample", "held_out", "saved", "warning", "end"];
const MOST_POINTS = 3000; // above it the curve is asked for again: the server thins it out

/** Begin to follow what trains. @param {{comfy: Pick<Comfy, "on">, server: Pick<Server, "running" | "run" | "curve">}} given */
export function watch({ comfy, server }) {
  /** @type {Map<string, RunState>} */
  const states = new Map();
  /** @type {Map<string, [string, any][]>} by run that is being fetched: the messages that come meanwhile */
  const meanwhile = new Map();
  /** @type {Set<(state: RunState) => void>} */
  const listeners = new Set();

  const put = (/** @type {RunState} */ state) => {
    states.set(state.run.id, state);
    for (const listener of listeners) listener(state);
  };

  /** @type {(id: string) => Promise<boolean>} whether there is such a run */
  const fetchRun = async (id) => {
    /** @type {[string, any][]} */
    const messages = [];
    meanwhile.set(id, messages);
    try {
      const [run, curve] = await Promise.all([server.run(id), server.curve(id)]);
      if (meanwhile.get(id) !== messages) return true; // it was asked for again, and that answer is newer
      const before = states.get(id);
      const start = { ...seed(run, curve), note: before?.note ?? null };
      put(messages.reduce((state, [type, detail]) => applyMessage(state, type, detail), start));
      return true;
    } catch {
      return false;
    } finally {
      if (meanwhile.get(id) === messages) meanwhile.delete(id);
    }
  };

  const hear = (/** @type {string} */ type, /** @type {any} */ detail) => {
    const id = detail.run;
    if (type === "begin") {
      // Until its folder is there a training has another id, which is forgotten here.
      for (const { run } of states.values()) if (run.node === detail.node && run.id !== id) states.delete(run.id);
      return void fetchRun(id);
    }
    meanwhile.get(id)?.push([type, detail]);
    const before = states.get(id);
    const state = before && applyMessage(before, type, detail);
    if (state) put(state);
    const isStale = !state || state.columns.step.length > MOST_POINTS || (detail.latest && !before?.run.latest); // at the first step the plan is known
    if (isStale && !meanwhile.has(id)) void fetchRun(id);
  };
  for (const type of MESSAGES) comfy.on(`anima_trainer.${type}`, (detail) => hear(type, detail));

  return {
    /** @type {(id: string) => RunState | undefined} */
    get: (id) => states.get(id),
    running: () => [...states.values()].filter(({ run }) => run.state === "running"),
    /** Fetch a run that is not known yet; tells whether there is one. @type {(id: string) => Promise<boolean>} */
    follow: async (id) => states.has(id) || meanwhile.has(id) || fetchRun(id),
    /** Call with every state that changes. @type {(listener: (state: RunState) => void) => void} */
    changed: (listener) => void listeners.add(listener),
    /** Ask the server for all that trains, and for what trained when it was last heard of. */
    async refresh() {
      const now = await server.running().catch(() => null);
      if (!now) return;
      const running = [...states.values()].filter(({ run }) => run.state === "running").map(({ run }) => run.id);
      await Promise.all([...new Set([...now.runs.map(({ id }) => id), ...running])].map(fetchRun));
    },
  };
}
