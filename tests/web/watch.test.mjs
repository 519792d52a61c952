import assert from "node:assert/strict";
import test from "node:test";

import { watch } from "../../web/lib/watch.js";

const points = (...steps) => ({ step: steps, loss: steps, mean_loss: steps, lr: steps, grad_norm: steps, seconds: steps });
const told = (...steps) => ({ run: "a", latest: { step: steps.at(-1), total: 9, mean_loss: 1 }, progress: null, points: points(...steps) });

/** A server whose answers are given by hand, and the messages of a socket. */
function world(known = { a: { id: "a", state: "running", pictures: [], warnings: [] } }) {
  const heard = {};
  const asked = [];
  const later = (what) => new Promise((resolve, reject) => asked.push({ what, resolve, reject }));
  const server = {
    running: async () => ({ running: [], runs: Object.values(known).filter(({ state }) => state === "running") }),
    run: async (id) => known[id] ?? Promise.reject(new Error("no such run")),
    curve: (id) => later(id),
  };
  const runs = watch({ comfy: { on: (type, listener) => (heard[type] = listener) }, server });
  const say = (type, detail) => heard[`anima_trainer.${type}`](detail);
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  const answer = async (...steps) => {
    await settle();
    asked.shift().resolve({ columns: points(...steps), steps: steps.length });
    await settle();
  };
  return { runs, say, answer, asked, settle, known };
}

test("messages that come while a run is fetched are not lost, nor counted twice", async () => {
  const { runs, say, answer } = world();
  const fetched = runs.follow("a");
  say("progress", told(3, 4));
  say("progress", told(5));
  await answer(1, 2, 3);
  assert.equal(await fetched, true);
  assert.deepEqual(runs.get("a").columns.step, [1, 2, 3, 4, 5]);
});

test("a message of a run that is not known fetches it", async () => {
  const { runs, say, answer } = world();
  say("progress", told(7));
  await answer(1, 2, 3, 4, 5, 6, 7);
  assert.deepEqual(runs.get("a").columns.step, [1, 2, 3, 4, 5, 6, 7]);
});

test("after a lost connection the curve is the server's again, without a gap", async () => {
  const { runs, say, answer, settle } = world();
  say("begin", { run: "a" });
  await answer(1, 2);
  const refreshed = runs.refresh();
  await settle();
  say("progress", told(9));
  await answer(1, 2, 3, 4, 5, 6, 7, 8);
  await refreshed;
  assert.deepEqual(runs.get("a").columns.step, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test("a training that ended while nobody listened is asked for too", async () => {
  const { runs, say, answer, known } = world();
  say("begin", { run: "a" });
  await answer(1);
  known.a = { ...known.a, state: "finished" };
  const refreshed = runs.refresh();
  await answer(1, 2);
  await refreshed;
  assert.equal(runs.get("a").run.state, "finished");
  assert.deepEqual(runs.running(), []);
});

test("an older answer does not replace a newer one", async () => {
  const { runs, say, asked, settle } = world();
  say("begin", { run: "a" });
  await settle();
  say("begin", { run: "a" });
  await settle();
  const [older, newer] = asked;
  newer.resolve({ columns: points(1, 2, 3), steps: 3 });
  await settle();
  older.resolve({ columns: points(1), steps: 1 });
  await settle();
  assert.deepEqual(runs.get("a").columns.step, [1, 2, 3]);
});

test("a curve that grew long is thinned out by the server", async () => {
  const { runs, say, answer, asked } = world();
  say("begin", { run: "a" });
  await answer(...Array.from({ length: 3000 }, (_, i) => i + 1));
  say("progress", told(3001));
  await answer(1, 1500, 3001);
  assert.deepEqual(runs.get("a").columns.step, [1, 1500, 3001]);
  assert.equal(asked.length, 0);
});

test("a run that is gone is not there, and is no error", async () => {
  const { runs, answer } = world({});
  const followed = runs.follow("gone");
  await answer();
  assert.equal(await followed, false);
  assert.equal(runs.get("gone"), undefined);
});

test("with its first step a run is asked for again: what its blocks keep was decided after it began", async () => {
  const { runs, say, answer, asked, known } = world();
  say("begin", { run: "a" });
  await answer();
  known.a = { ...known.a, plan: "2 of 2 blocks keep", latest: { step: 1 } };
  say("progress", told(1));
  await answer(1);
  say("progress", told(2));
  assert.equal(runs.get("a").run.plan, "2 of 2 blocks keep");
  assert.deepEqual([runs.get("a").columns.step, asked.length], [[1, 2], 0]);
});
