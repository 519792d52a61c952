/** The runs tab's plain data: groups, settings that differ, samples in rows and columns, how long ago, how often. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { ago, differingSettings, groupRuns, paced, sampleGrid } from "../../web/lib/runs.js";

const run = (name, state, network = "LoRA rank 32") => ({ id: name, name, state, network });
const names = (groups) => groups.map(({ group, runs }) => [group, ...runs.map((one) => one.name)]);

test("runs are grouped, a kept one is finished, and a group without runs is left out", () => {
  const runs = [run("a", "running"), run("b", "kept"), run("c", "finished"), run("d", "kept")];
  assert.deepEqual(names(groupRuns(runs)), [["running", "a"], ["finished", "b", "c", "d"]]);
  assert.deepEqual(groupRuns([]), []);
});

test("a filter's words are all looked for, in name and network, whatever their case", () => {
  const runs = [run("Style_v1", "unfinished"), run("style_v2", "unfinished", "LoKr factor 8"), run("cat", "finished", "LoKr factor 8")];
  assert.deepEqual(names(groupRuns(runs, "STYLE")), [["unfinished", "Style_v1", "style_v2"]]);
  assert.deepEqual(names(groupRuns(runs, " style  lokr ")), [["unfinished", "style_v2"]]);
  assert.deepEqual(names(groupRuns(runs, "dog")), []);
});

test("of several runs only the settings that differ are listed, with a dash where one has none", () => {
  const first = { settings: { "network.rank": 32, seed: 1, "output.name": "a", prompts: ["x"], "sample.every": 0 } };
  const second = { settings: { "network.rank": 16, seed: 1, "output.name": "b", prompts: ["x"], "network.factor": 8, "sample.every": "" } };
  assert.deepEqual(differingSettings([first, second]), [
    { place: "network.rank", values: ["32", "16"] },
    { place: "sample.every", values: ["0", "—"] },
    { place: "network.factor", values: ["—", "8"] },
  ]);
  assert.deepEqual(differingSettings([first, first]), []);
});

test("of one run all settings are listed, its name too", () => {
  const rows = differingSettings([{ settings: { "output.name": "a", betas: [0.9, 0.99], flag: false } }]);
  assert.deepEqual(rows.map(({ place, values }) => [place, ...values]), [["output.name", "a"], ["betas", "[0.9,0.99]"], ["flag", "false"]]);
});

test("samples stand in a grid, the latest step first; a prompt that was changed has a column of its own", () => {
  const sample = (step, index, prompt) => ({ step, index, prompt, file: `step-${step}-${index}.png` });
  const samples = [sample(0, 0, "cat"), sample(0, 1, "dog"), sample(10, 1, "dog"), sample(10, 0, "cat"), sample(20, 0, "bird")];
  const { prompts, rows } = sampleGrid(samples);
  assert.deepEqual(prompts, ["cat", "bird", "dog"]);
  assert.deepEqual(rows.map(({ step, samples }) => [step, ...samples.map((one) => one && one.file)]), [
    [20, null, "step-20-0.png", null],
    [10, "step-10-0.png", null, "step-10-1.png"],
    [0, "step-0-0.png", null, "step-0-1.png"],
  ]);
  assert.deepEqual(sampleGrid([]), { prompts: [], rows: [] });
});

test("how long ago is told in the unit that fits, in the page's language", () => {
  assert.equal(ago(-3, "en"), "now"); // a server's clock may be ahead
  assert.equal(ago(59, "en"), "now");
  assert.equal(ago(60, "en"), "1 min. ago");
  assert.equal(ago(7199, "en"), "1 hr. ago");
  assert.equal(ago(86400, "en"), "yesterday");
  assert.equal(ago(86400 * 40, "en"), "40 days ago");
  assert.equal(ago(180, "zh"), "3分钟前");
});

test("a paced function acts at once, then at most so often, and makes up for the last call", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  let count = 0;
  const call = paced(() => count++, 100);
  for (let i = 0; i < 5; i++) call();
  assert.equal(count, 1);
  mock.timers.tick(100);
  assert.equal(count, 2);
  mock.timers.tick(1000);
  assert.equal(count, 2);
  call();
  assert.equal(count, 3);
  mock.timers.reset();
});
