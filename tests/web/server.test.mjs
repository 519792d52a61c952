import assert from "node:assert/strict";
import test from "node:test";

import { connect } from "../../web/lib/server.js";

/** A server that answers everything alike, and the requests that it got. */
function answering(status, body, statusText = "") {
  const asked = [];
  const fetchApi = async (path, init) => {
    asked.push([path, init?.method ?? "GET", init?.body && JSON.parse(init.body)]);
    return new Response(body === undefined ? "<html>" : JSON.stringify(body), { status, statusText });
  };
  return { asked, server: connect({ fetchApi, url: (path) => `/api${path}` }) };
}

test("each function asks its route", async () => {
  const { asked, server } = answering(200, { runs: [], folders: [] });
  await server.running();
  await server.runs();
  await server.run("a b");
  await server.curve("a", 500);
  await server.graph("a");
  await server.folders();
  await server.describe("vae", "diffusers/my pipe/");
  await server.command("stop", { run: "a" });
  await server.remove("a", "my style");
  assert.deepEqual(asked, [
    ["/anima_trainer/running", "GET", undefined],
    ["/anima_trainer/runs", "GET", undefined],
    ["/anima_trainer/runs/a%20b", "GET", undefined],
    ["/anima_trainer/runs/a/curve?points=500", "GET", undefined],
    ["/anima_trainer/runs/a/graph", "GET", undefined],
    ["/anima_trainer/folders", "GET", undefined],
    ["/anima_trainer/describe?kind=vae&name=diffusers%2Fmy%20pipe%2F", "GET", undefined],
    ["/anima_trainer/stop", "POST", { run: "a" }],
    ["/anima_trainer/runs/a/delete", "POST", { name: "my style" }],
  ]);
});

test("names in addresses of pictures are escaped", () => {
  const { server } = answering(200, {});
  assert.equal(server.sampleUrl("a", "1 2.png"), "/api/anima_trainer/runs/a/samples/1%202.png");
  assert.equal(server.sampleUrl("a", "1.png", 256), "/api/anima_trainer/runs/a/samples/1.png?side=256");
  assert.equal(server.pictureUrl("my cats/猫", "a&b.png", 64), `/api/anima_trainer/folders/picture?folder=my%20cats%2F${encodeURIComponent("猫")}&file=a%26b.png&side=64`);
});

test("an error is the line that the server answered", async () => {
  const { server } = answering(404, { error: "run a is not training" });
  await assert.rejects(server.command("stop", { run: "a" }), { message: "run a is not training" });
});

test("an answer without a line is told by its address and status", async () => {
  const { server } = answering(502, undefined, "Bad Gateway");
  await assert.rejects(server.runs(), { message: "/anima_trainer/runs: 502 Bad Gateway" });
  await assert.rejects(answering(200, undefined, "OK").server.runs(), { message: "/anima_trainer/runs: 200 OK, but no JSON" });
});

test("a server that does not answer is an error of one line", async () => {
  const server = connect({ fetchApi: () => Promise.reject(new TypeError("Failed to fetch")), url: String });
  await assert.rejects(server.running(), { message: "the server does not answer; check that ComfyUI is running" });
});
