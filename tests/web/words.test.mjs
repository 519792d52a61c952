import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";

import { clock, figure } from "../../web/lib/dom.js";
import { logTicks, roomy } from "../../web/lib/plot.js";
import { whereabouts } from "../../web/lib/panel.js";
import { said, translator } from "../../web/lib/words.js";

const WEB = new URL("../../web/", import.meta.url);
const [en, zh] = ["en", "zh"].map((language) => JSON.parse(readFileSync(new URL(`words/${language}.json`, WEB), "utf8")));
const sources = readdirSync(new URL("lib/", WEB)).filter((name) => name.endsWith(".js")).map((name) => `lib/${name}`);
const code = ["anima_trainer.js", ...sources].map((name) => readFileSync(new URL(name, WEB), "utf8")).join("\n");
const placeholders = (text) => (text.match(/\{\w+\}/g) ?? []).sort();

test("both languages have the same words, with the same places for values", () => {
  assert.deepEqual(Object.keys(zh), Object.keys(en));
  for (const key of Object.keys(en)) {
    assert.deepEqual(placeholders(zh[key]), placeholders(en[key]), key);
    assert.ok(en[key].trim() && zh[key].trim(), key);
  }
});

test("each language of web/words is offered", () => {
  const offered = code.match(/(\[[^\]]*\])\.map\(async \(language\)/)[1];
  assert.deepEqual(JSON.parse(offered), readdirSync(new URL("words/", WEB)).map((name) => name.replace(".json", "")).sort());
});

test("every word that the code asks for by name is there", () => {
  const asked = [...code.matchAll(/\bt\("([\w.]+)"/g), ...code.matchAll(/key: "([\w.]+)"/g)].map(([, key]) => key);
  assert.ok(asked.length > 20);
  assert.deepEqual(asked.filter((key) => !(key in en)), []);
});

test("every word is asked for", () => {
  const composed = [...code.matchAll(/`([\w.]*)\$\{\w+(?:\.\w+)?\}([\w.]*)`/g)].map(([, head, tail]) => new RegExp(`^${head}.+${tail}$`)).filter(({ source }) => source.length > 8);
  const isAsked = (key) => code.includes(`"${key}"`) || composed.some((pattern) => pattern.test(key));
  assert.deepEqual(Object.keys(en).filter((key) => !isAsked(key)), []);
});

test("words are filled in, and fall back to English and to the key", () => {
  assert.equal(translator(en)("panel.step", { step: 3, total: 9 }), "step 3 / 9");
  assert.equal(translator(zh, en)("panel.step", { step: 3, total: 9 }), "第 3 / 9 步");
  assert.equal(translator({}, en)("panel.stop"), "Stop and keep");
  assert.equal(translator(en)("no.such"), "no.such");
  assert.equal(translator(en)("panel.step"), "step {step} / {total}");
});

test("sentences of the server on how it goes are said in the page's words, others as they are", () => {
  const rises = "held-out loss rises since step 700, best at 650: use the adapter of step 650";
  assert.equal(said(translator(zh, en), rises), "留出集损失自第 700 步起上升；第 650 步最佳，建议使用第 650 步的适配器");
  for (const text of [rises, "held-out loss falls, 0.0812 at step 50, the base model's is 0.1: training still helps", "something else at 3"]) {
    assert.equal(said(translator(en), text), text);
  }
  assert.equal(said(translator(zh, en), "something else at 3"), "something else at 3");
});

test("times and numbers read as people write them", () => {
  assert.deepEqual([0, 20.4, 200, 3599.6, 7500, null, NaN].map(clock), ["0 s", "20 s", "3 min 20 s", "1 h 00 min", "2 h 05 min", "—", "—"]);
  assert.deepEqual([0.12345, 8.333e-5, 1e-4, 0, null, Infinity, -2].map((x) => figure(x)), ["0.123", "8.33e-5", "1e-4", "0.000", "—", "—", "-2.000"]);
  assert.deepEqual([figure(1.415, 2), figure(12, 1)], ["1.42", "12.0"]);
});

test("where a run is: before the steps, at a step, and while samples are drawn", () => {
  const t = translator(en);
  const at = { step: 4, total: 9, latest: { step: 4 }, progress: null };
  assert.equal(whereabouts(at, t), "step 4 / 9");
  assert.equal(whereabouts({ ...at, latest: null, progress: { stage: "latents", done: 3, total: 20 } }, t), "pictures to latents 3 / 20");
  assert.equal(whereabouts({ ...at, latest: null, progress: { stage: "scanning cats", done: 3, total: 20 } }, t), "scanning cats 3 / 20");
  assert.equal(whereabouts({ ...at, progress: { stage: "preview", done: 1, total: 30, picture: 2, pictures: 3 } }, t), "step 4 / 9 · sample 2 of 3");
});

test("axes have room, and a few round numbers when they are logarithmic", () => {
  assert.deepEqual(roomy(1, 2, false), [0.94, 2.06]);
  assert.deepEqual(roomy(0.01, 2, false)[0], 0);
  assert.deepEqual(roomy(null, null, true), [0.1, 1]);
  assert.ok(roomy(0, 1, true)[0] > 0);
  for (const [low, high] of [[0.13, 0.5], [0.01, 1], [1e-5, 3], [0.9, 1.1], [3, 3000]]) {
    const ticks = logTicks(low, high);
    assert.ok(ticks.length >= 1 && ticks.length <= 6, `${low} to ${high}: ${ticks}`);
    assert.ok(ticks.every((tick) => tick >= low && tick <= high));
  }
});
