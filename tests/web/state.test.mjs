import assert from "node:assert/strict";
import test from "node:test";

import { append, applyMessage, bySteps, nodeOf, NO_POINTS, percent, seed } from "../../web/lib/state.js";

export const points = (...steps) => ({
  step: steps,
  loss: steps.map((step) => step / 10),
  mean_loss: steps.map((step) => step / 20),
  lr: steps.map(() => 1e-4),
  grad_norm: steps.map((step) => (step % 2 ? null : 1)),
  seconds: steps.map(() => 2),
});
const run = { id: "a", name: "style", state: "running", node: "12:5", step: 0, total: 10, loss: null, pictures: [], warnings: [], latest: null, progress: null, sentence: null };
const start = seed(run, { columns: points(1, 2, 3), steps: 3 });
const after = (...messages) => messages.reduce((state, [type, detail]) => applyMessage(state, type, detail), start);

test("points that a seed holds already are not added a second time", () => {
  const { step, loss, grad_norm } = append(points(1, 2, 3), points(2, 3, 4, 5));
  assert.deepEqual(step, [1, 2, 3, 4, 5]);
  assert.deepEqual(loss, [0.1, 0.2, 0.3, 0.4, 0.5]);
  assert.deepEqual(grad_norm, [null, 1, null, 1, null]);
});

test("points that are all known, or none, leave the columns as they are", () => {
  const known = points(1, 2, 3);
  assert.equal(append(known, points(2, 3)), known);
  assert.equal(append(known, NO_POINTS), known);
  assert.deepEqual(append(NO_POINTS, known), known);
});

test("progress brings the step, the figures and the curve; the state before is not changed", () => {
  const latest = { step: 4, total: 10, loss: 0.4, mean_loss: 0.2, eta: 12 };
  const state = after(["progress", { latest, progress: null, points: points(4) }]);
  assert.equal(state.run.step, 4);
  assert.equal(state.run.loss, 0.2);
  assert.deepEqual(state.run.latest, latest);
  assert.deepEqual(state.columns.step, [1, 2, 3, 4]);
  assert.deepEqual(start.columns.step, [1, 2, 3]);
  assert.equal(start.run.step, 0);
});

test("progress before the first step has a stage and no figures", () => {
  const state = after(["progress", { latest: null, progress: { stage: "latents", done: 3, total: 20 }, points: NO_POINTS }]);
  assert.equal(state.run.progress.done, 3);
  assert.equal(state.run.latest, null);
  assert.equal(state.columns, start.columns);
});

test("samples stand in the order of their steps, a sample told twice stands once", () => {
  const sample = (step, index) => ["sample", { sample: { step, index, prompt: "p", file: `${step}-${index}` } }];
  const state = after(sample(20, 0), sample(10, 1), sample(10, 0), sample(20, 0));
  assert.deepEqual(state.run.pictures.map(({ file }) => file), ["10-0", "10-1", "20-0"]);
  assert.equal(state.run.samples, 3);
  assert.deepEqual(bySteps(state.run.pictures).map(({ step, pictures }) => [step, pictures.length]), [[10, 2], [20, 1]]);
  assert.deepEqual(state.note, { key: "panel.drawn", values: { step: 20 } });
});

test("held-out losses stand in the order of their steps; what is told again stands once", () => {
  const row = (step, loss) => ["held_out", { held_out: { step, loss, best_step: step } }];
  const losses = (state) => state.held_out.map(({ step, loss }) => [step, loss]);
  assert.deepEqual(losses(after(row(0, 3), row(2, 2))), [[0, 3], [2, 2]]);
  assert.deepEqual(losses(after(row(2, 2), row(4, 1), row(4, 5), row(2, 7))), [[2, 7]]); // gone back to a step before
  assert.deepEqual(seed(run, { columns: points(1), steps: 1, held_out: [{ step: 1, loss: 2 }] }).held_out.length, 1);
});

test("each way to end leaves its state, its sentence and no node", () => {
  for (const [outcome, left] of [["done", "finished"], ["already", "finished"], ["kept", "kept"], ["cancelled", "unfinished"], ["failed", "unfinished"]]) {
    const state = after(["saved", { step: 3 }], ["end", { outcome, sentence: "so it ended" }]);
    assert.deepEqual([state.run.state, state.run.node, state.run.sentence, state.outcome, state.note], [left, null, "so it ended", outcome, null]);
  }
});

test("warnings are kept in order; messages of another kind change nothing", () => {
  assert.deepEqual(after(["warning", { text: "one" }], ["warning", { text: "two" }]).run.warnings, ["one", "two"]);
  assert.equal(applyMessage(start, "other", {}), start);
});

test("a node is found through the subgraphs that its id walks", () => {
  const inner = { id: 5 };
  const graphOf = (...nodes) => ({ getNodeById: (id) => nodes.find((node) => node.id === id) });
  const deep = graphOf({ id: "7", subgraph: graphOf(inner) });
  const graph = graphOf({ id: 12, subgraph: graphOf(inner) }, { id: 3, subgraph: deep }, { id: 4 });
  assert.equal(nodeOf(graph, "12:5"), inner);
  assert.equal(nodeOf(graph, "3:7:5"), inner);
  assert.equal(nodeOf(graph, "4").id, 4);
  for (const none of ["99", "12:99", "4:5", "99:5", ""]) assert.equal(nodeOf(graph, none), null);
});

test("percent is whole, never above 100, and 0 where no total is known", () => {
  assert.deepEqual([[0, 10], [3, 7], [10, 10], [11, 10], [3, 0]].map(([step, total]) => percent({ step, total })), [0, 42, 100, 100, 0]);
});
