// Loads templates in ComfyUI's real frontend, in both renderers, and prints as JSON where their nodes stand.
// node measure.cjs <address> <file with {name: workflow}> <folder for screenshots, or ""> [theme] [locale]
// playwright-core is looked for beside this file and in NODE_PATH; Chromium is $CHROMIUM or /usr/bin/chromium.
const fs = require("fs");
const path = require("path");
const { chromium } = require("playwright-core");

const [address, file, shots, theme = "dark", locale = "en"] = process.argv.slice(2);
const VIEW = { width: 1600, height: 1000 };
const READY = () => window.app?.graph && window.LiteGraph?.registered_node_types?.AnimaTrain && window.app.extensionManager?.setting;

async function open(page) {
  await page.goto(address);
  await page.waitForFunction(READY, null, { timeout: 120000 });
  await set(page, { "Comfy.TutorialCompleted": true, "Comfy.ColorPalette": theme, "Comfy.Locale": locale });
  await page.waitForTimeout(1000);
  await page.keyboard.press("Escape"); // the browser of templates opens by itself on a first start
}

async function set(page, settings) {
  await page.evaluate(async (values) => {
    for (const [id, value] of Object.entries(values)) await window.app.extensionManager.setting.set(id, value);
  }, settings);
}

// Waits until every node has had the same box for half a second.
async function settled(page, read) {
  let before = "";
  for (let same = 0, tries = 0; same < 5 && tries < 200; tries++) {
    await page.waitForTimeout(100);
    const now = JSON.stringify(await page.evaluate(read));
    same = now === before && now !== "{}" ? same + 1 : 0;
    before = now;
  }
  return JSON.parse(before);
}

// id -> [x, y, width, height] in the graph's units, titles included.
function classicBoxes() {
  const boxes = {};
  for (const node of window.app.graph.nodes) {
    boxes[node.id] = [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30].map(Math.round);
  }
  return boxes;
}

function vueBoxes() {
  const { scale, offset } = window.app.canvas.ds;
  const canvas = window.app.canvas.canvas.getBoundingClientRect();
  const boxes = {};
  for (const element of document.querySelectorAll("[data-node-id]")) {
    const box = element.getBoundingClientRect();
    const place = [(box.x - canvas.x) / scale - offset[0], (box.y - canvas.y) / scale - offset[1]];
    boxes[element.dataset.nodeId] = [...place, box.width / scale, box.height / scale].map(Math.round);
  }
  return boxes;
}

// [link, node] for every link whose drawn curve passes behind a node; of its own two nodes all but the ends, where it begins.
function behind(boxes) {
  const graph = window.app.graph;
  const pen = document.createElement("canvas").getContext("2d");
  pen.lineWidth = 2;
  const found = [];
  for (const link of graph.links.values()) {
    const paths = [link, ...graph.reroutes.values()].filter((p) => p === link || p.linkIds.has(link.id)).map((p) => p.path);
    for (const [id, [x, y, width, height]] of Object.entries(boxes)) {
      const inset = [link.origin_id, link.target_id].map(String).includes(id) ? 26 : 3;
      const covered = (px, py) => paths.some((p) => p && pen.isPointInStroke(p, px, py));
      if (anyPoint(x + inset, y + 3, width - 2 * inset, height - 6, covered)) found.push([link.id, Number(id)]);
    }
  }
  return found;

  // The border of a box, point by point: a curve that enters it must cross that.
  function anyPoint(x, y, width, height, test) {
    for (let i = 0; i <= width; i++) if (test(x + i, y) || test(x + i, y + height)) return true;
    for (let i = 0; i <= height; i++) if (test(x, y + i) || test(x + width, y + i)) return true;
    return false;
  }
}

async function measure(page, name, workflow, renderer) {
  await page.evaluate(
    ([graph, title]) => window.app.loadGraphData(graph, true, true, title, { openSource: "template" }),
    [workflow, name],
  );
  const boxes = await settled(page, renderer === "vue" ? vueBoxes : classicBoxes);
  const scale = await page.evaluate(() => window.app.canvas.ds.scale);
  const crossed = await page.evaluate(
    ([code, found]) => new Function("boxes", `return (${code})(boxes)`)(found),
    [behind.toString(), boxes],
  );
  if (shots) await page.screenshot({ path: path.join(shots, `${name}.${renderer}.${theme}.${locale}.png`) });
  return { boxes, scale: Math.round(scale * 1000) / 1000, behind: crossed };
}

async function main() {
  const workflows = JSON.parse(fs.readFileSync(file, "utf-8"));
  const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  try {
    const page = await (await browser.newContext({ viewport: VIEW })).newPage();
    await open(page);
    const found = {};
    for (const renderer of ["classic", "vue"]) {
      await set(page, { "Comfy.VueNodes.Enabled": renderer === "vue" });
      await page.waitForTimeout(500);
      for (const [name, workflow] of Object.entries(workflows)) {
        (found[name] ??= {})[renderer] = await measure(page, name, workflow, renderer);
      }
    }
    console.log(JSON.stringify(found));
  } finally {
    await browser.close();
  }
}

main();
