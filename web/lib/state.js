// @ts-check
/** What is known of a run, from the server's answers and its messages. Pure functions: states are replaced, never changed. */

/** @import { Columns, Curve, Run, RunState } from "./types" */

const NAMES = /** @type {const} */ (["step", "loss", "mean_loss", "lr", "grad_norm", "seconds"]);
/** @type {Columns} */
export const NO_POINTS = { step: [], loss: [], mean_loss: [], lr: [], grad_norm: [], seconds: [] };

/** Make the state from what the server holds. @type {(run: Run, curve: Curve) => RunState} */
export const seed = (run, curve) => ({ run, columns: curve.columns, held_out: curve.held_out ?? [], note: null, outcome: null });

/** Add the points that are new. Those that are there already, as after a seed, are left out. @type {(columns: Columns, points: Columns) => Columns} */
export function append(columns, points) {
  const last = columns.step.at(-1) ?? -Infinity;
  const from = points.step.findIndex((step) => step > last);
  if (from < 0) return columns;
  return /** @type {any} */ (Object.fromEntries(NAMES.map((name) => [name, [...columns[name], ...points[name].slice(from)]])));
}

/** Return the state after a message of the server. @type {(state: RunState, type: string, detail: any) => RunState} */
export function applyMessage(state, type, detail) {
  const { run } = state;
  if (type === "progress") {
    const { latest, progress, points } = detail;
    const reached = latest ? { latest, step: latest.step, total: latest.total, loss: latest.mean_loss } : {};
    return { ...state, run: { ...run, ...reached, state: "running", progress }, columns: points ? append(state.columns, points) : state.columns };
  }
  if (type === "sample") {
    const { sample } = detail;
    const others = run.pictures.filter(({ file }) => file !== sample.file);
    const pictures = [...others, sample].sort((a, b) => a.step - b.step || a.index - b.index);
    return { ...state, run: { ...run, pictures, samples: pictures.length }, note: { key: "panel.drawn", values: { step: sample.step } } };
  }
  if (type === "held_out") {
    const { held_out: row } = detail;
    return { ...state, held_out: [...state.held_out.filter(({ step }) => step < row.step), row] };
  }
  if (type === "saved") return { ...state, note: { key: "panel.saved", values: { step: detail.step } } };
  if (type === "warning") return { ...state, run: { ...run, warnings: [...run.warnings, detail.text] } };
  if (type === "end") {
    const { outcome, sentence } = detail;
    const error = outcome === "failed" ? sentence : null;
    return { ...state, run: { ...run, state: afterwards(outcome), progress: null, node: null, sentence, error }, note: null, outcome };
  }
  return state;
}

/** @type {(outcome: string) => Run["state"]} */
const afterwards = (outcome) => (outcome === "kept" ? "kept" : outcome === "done" || outcome === "already" ? "finished" : "unfinished");

/** Return how far a run is, 0 to 100. @type {(run: {step: number, total: number}) => number} */
export const percent = ({ step, total }) => (total ? Math.min(100, Math.floor((100 * step) / total)) : 0);

/** Find the node of an execution id such as "12:5", or null: node 5 within the subgraph that node 12 stands for. @type {(graph: any, id: string) => any} */
export function nodeOf(graph, id) {
  const [first, ...rest] = String(id).split(":");
  const find = (/** @type {any} */ within, /** @type {string} */ name) => within?.getNodeById?.(name) ?? within?.getNodeById?.(Number(name)) ?? null;
  return rest.reduce((node, name) => find(node?.subgraph, name), find(graph, first));
}

/** Group samples by the step that they were drawn at, in order. @param {Run["pictures"]} pictures */
export function bySteps(pictures) {
  const steps = [...new Set(pictures.map(({ step }) => step))].sort((a, b) => a - b);
  return steps.map((step) => ({ step, pictures: pictures.filter((picture) => picture.step === step).sort((a, b) => a.index - b.index) }));
}
