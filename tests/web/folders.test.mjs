/** The folder chooser: which files are uploaded, under which folder names, and what becomes of those that the server refuses. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { isFolderName, planUpload, upload } from "../../web/lib/folders.js";

const file = (name, path = "") => Object.assign(new File(["x"], name), { webkitRelativePath: path });
const planned = (files, isNew) => {
  const { send, left, pictures, captions } = planUpload(files, isNew);
  return { send: send.map(({ name }) => name), left: left.map(({ name, why }) => `${name}: ${why}`), pictures, captions };
};

test("pictures and their captions are sent, in whatever case, and the rest is named with its reason", () => {
  const files = ["a.PNG", "a.txt", "b.jpeg", "b.tags.txt", "notes.pdf", "no_ending", "A.png", "lonely.txt"].map((name) => file(name));
  assert.deepEqual(planned(files, true), {
    send: ["a.PNG", "a.txt", "b.jpeg"],
    left: ["b.tags.txt: alone", "notes.pdf: kind", "no_ending: kind", "A.png: twice", "lonely.txt: alone"],
    pictures: 2,
    captions: 1,
  });
});

test("a caption without its picture is sent into a folder that is there: the picture may be in it", () => {
  assert.deepEqual(planned([file("a.txt")], false), { send: ["a.txt"], left: [], pictures: 0, captions: 1 });
});

test("of a chosen folder the files directly in it are sent", () => {
  const files = [file("a.png", "cats/a.png"), file("b.png", "cats/old/b.png")];
  assert.deepEqual(planned(files, true), { send: ["a.png"], left: ["b.png: below"], pictures: 1, captions: 0 });
});

test("a folder's name is one that every system takes and that stays below input", () => {
  for (const name of ["cats", "猫 風景", "a.b", "10_cats", "mine/cats", "x"]) assert.ok(isFolderName(name), name);
  const bad = ["", "..", "../cats", "a/../b", "/cats", "cats/", "a/b/c", "a\\b", "c:", "a ", " a", ".hidden", "a.", "a?b", "a\nb", "x".repeat(102)];
  for (const name of bad) assert.ok(!isFolderName(name), name);
});

/** A server that takes what `take` says, and what it was sent. */
function serving(take) {
  const sent = [];
  const fetchApi = async (path, { method, body }) => {
    const fields = Object.fromEntries(body);
    sent.push([method, path, fields.image.name, fields.subfolder, fields.type, fields.overwrite]);
    return take(fields.image.name);
  };
  return { sent, comfy: { fetchApi } };
}

test("files go to the stock route, into the folder below input, over those of the same name", async () => {
  const { sent, comfy } = serving(() => new Response("{}"));
  const done = [];
  const refused = await upload(comfy, "my cats", [file("a.png"), file("a.txt")], (count) => done.push(count));
  assert.deepEqual(refused, []);
  assert.deepEqual(done, [1, 2]);
  assert.deepEqual(sent, ["a.png", "a.txt"].map((name) => ["POST", "/upload/image", name, "my cats", "input", "true"]));
});

test("a file that is refused is told with the server's line, and the others are sent all the same", async () => {
  const answers = {
    "big.png": () => new Response("Maximum request body size exceeded", { status: 413 }),
    "odd.png": () => new Response(null, { status: 400, statusText: "Bad Request" }),
    "lost.png": () => Promise.reject(new TypeError("failed to fetch")),
  };
  const { sent, comfy } = serving((name) => answers[name]?.() ?? new Response("{}"));
  const files = ["big.png", "odd.png", "lost.png", "1.png", "2.png", "3.png", "4.png"].map((name) => file(name));
  const refused = await upload(comfy, "cats", files, () => {});
  assert.equal(sent.length, 7);
  assert.deepEqual(refused.sort(), [
    "big.png: Maximum request body size exceeded",
    "lost.png: no answer",
    "odd.png: 400 Bad Request",
  ]);
});
