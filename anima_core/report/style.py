"""The look of a report: light, dark, narrow, wide and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --raised: #f5f6f8; --ink: #1c2128; --soft: #57606c; --line: #dde1e6;
  --main: #1f5fbf; --raw: #8b9dba; --good: #1a7037; --bad: #b3261e; --open: #8a5300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --raised: #1d2126; --ink: #e6e9ed; --soft: #a0a9b4; --line: #323840;
    --main: #7db0ff; --raw: #5b6f8c; --good: #6fcf8a; --bad: #ff8f85; --open: #f0b45c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px clamp(14px, 4vw, 40px) 40px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 36px 0 10px; font-size: 18px; }
p, li, dd, summary { overflow-wrap: anywhere; }
header p { margin: 6px 0 18px; color: var(--soft); }
.state { margin-right: 8px; font-weight: 600; color: var(--open); }
.finished { color: var(--good); }
.failed { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 0; }
dl div { padding: 9px 12px; border-radius: 8px; background: var(--raised); }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 18px; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; margin-bottom: 10px; }
figcaption span { color: var(--soft); font-size: 13px; }
.key::before { content: ""; display: inline-block; width: 16px; height: 3px; margin-right: 6px; vertical-align: 4px; }
.key.raw::before { background: var(--raw); }
.key.main::before { background: var(--main); }
.key.ema::before { background: var(--open); }
.key.base::before { background: var(--soft); }
.key.best::before { width: 9px; height: 9px; border-radius: 50%; background: var(--good); vertical-align: 0; }
.plot { position: relative; height: 280px; margin: 0 28px 34px 60px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 24px; }
.pair .plot { height: 180px; }
svg { display: block; width: 100%; height: 100%; overflow: visible; }
path { fill: none; stroke-linejoin: round; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.grid { stroke: var(--line); stroke-width: 1px; }
path.raw { stroke: var(--raw); stroke-width: 1px; }
path.main { stroke: var(--main); stroke-width: 2px; }
path.ema { stroke: var(--open); stroke-width: 2px; }
path.base { stroke: var(--soft); stroke-width: 1px; stroke-dasharray: 5 5; }
path.best { stroke: var(--good); stroke-width: 11px; }
i { position: absolute; color: var(--soft); font-size: 12px; font-style: normal; font-variant-numeric: tabular-nums; }
i.x { top: calc(100% + 6px); transform: translateX(-50%); }
i.y { right: calc(100% + 8px); transform: translateY(50%); white-space: nowrap; }
.wide { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 400; }
td { white-space: pre-line; }
.settings tbody th, .settings td:nth-child(2) { min-width: 120px; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-size: 13px; }
.numbers th, .numbers td { padding-right: 22px; text-align: right; font-variant-numeric: tabular-nums; }
.samples { table-layout: fixed; width: 100%; }
.samples { min-width: calc(78px + 104px * var(--columns)); max-width: calc(78px + 228px * var(--columns)); }
.samples th, .samples td { padding: 4px 8px 4px 0; border: 0; }
.samples thead th { vertical-align: bottom; overflow-wrap: anywhere; }
.samples th:first-child { position: sticky; left: 0; width: 78px; background: var(--page); text-align: right; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.map img { width: auto; max-width: 100%; }
.note, footer { color: var(--soft); font-size: 13px; }
ul { margin: 8px 0; padding-left: 20px; }
.warnings li::marker { color: var(--open); }
code, pre { padding: 2px 5px; border-radius: 4px; background: var(--raised); font: 13px/1.45 ui-monospace, monospace; }
code { overflow-wrap: anywhere; }
pre { padding: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--soft); }
:focus-visible { outline: 2px solid var(--main); outline-offset: 2px; }
footer { margin-top: 40px; padding-top: 12px; border-top: 1px solid var(--line); }
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --raised: #f5f6f8; --ink: #000; --soft: #444; --line: #ccc;
    --main: #1f5fbf; --raw: #8b9dba; --good: #1a7037; --bad: #b3261e; --open: #8a5300;
  }
  body { font-size: 12px; }
  main { max-width: none; padding: 0; }
  figure, dl div, tr, img { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
  .samples { min-width: 0; }
}
"""
