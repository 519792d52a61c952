// @ts-check
/** What the runs tab shows of runs, as plain data: groups, settings that differ, samples in rows and columns. */

import { bySteps } from "./state.js";

/** @import { Run, Sample, Summary } from "./types" */

const GROUPS = /** @type {const} */ ({ running: ["running"], unfinished: ["unfinished"], finished: ["finished", "kept"] });
const OWN = /^output\.(name|dir|adapter_dir)$/; // what is another in every run, and says nothing about training

/**
 * Sort runs into groups, those without runs left out; within a group the order stays.
 * @param {Summary[]} runs
 * @param {string} [filter] words, all of which must be in a run's name or network
 */
export function groupRuns(runs, filter = "") {
  const words = filter.toLowerCase().split(/\s+/);
  const wanted = runs.filter(({ name, network }) => words.every((word) => `${name} ${network}`.toLowerCase().includes(word)));
  const groups = Object.entries(GROUPS).map(([group, states]) => ({ group, runs: wanted.filter(({ state }) => states.some((one) => one === state)) }));
  return groups.filter((group) => group.runs.length);
}

/**
 * List the settings that are not the same in all runs, names and folders left out; of a single run, all of them.
 * @param {Pick<Run, "settings">[]} runs
 * @returns {{ place: string, values: string[] }[]} "—" where a run has none
 */
export function differingSettings(runs) {
  const text = (/** @type {unknown} */ value) => (value == null || value === "" ? "—" : typeof value === "string" ? value : JSON.stringify(value));
  const places = [...new Set(runs.flatMap(({ settings }) => Object.keys(settings)))];
  const rows = places.map((place) => ({ place, values: runs.map(({ settings }) => text(settings[place])) }));
  return runs.length < 2 ? rows : rows.filter(({ place, values }) => new Set(values).size > 1 && !OWN.test(place));
}

/**
 * Lay samples out: a row for each step, the latest first, a column for each prompt. A prompt that was changed gets another column.
 * @param {Sample[]} samples
 */
export function sampleGrid(samples) {
  const key = (/** @type {Sample} */ { index, prompt }) => `${index} ${prompt}`;
  const columns = [...new Map(samples.map((one) => [key(one), one])).values()].sort((a, b) => a.index - b.index);
  const rows = bySteps(samples).reverse();
  const cells = (/** @type {Sample[]} */ pictures) => columns.map((column) => pictures.find((one) => key(one) === key(column)) ?? null);
  return { prompts: columns.map(({ prompt }) => prompt), rows: rows.map(({ step, pictures }) => ({ step, samples: cells(pictures) })) };
}

/**
 * Say how long ago something was, in words of a language: "3 hr. ago".
 * @param {number} seconds
 * @param {string} locale
 */
export function ago(seconds, locale) {
  const words = new Intl.RelativeTimeFormat(locale, { numeric: "auto", style: "short" });
  const units = /** @type {const} */ ([["day", 86400], ["hour", 3600], ["minute", 60]]);
  const [unit, length] = units.find(([, length]) => seconds >= length) ?? ["second", Infinity];
  return words.format(-Math.floor(seconds / length), unit);
}

/**
 * Return a function that calls `act` at once, and from then on at most so often; the last of the calls in between is made up for.
 * @param {() => void} act
 * @param {number} every milliseconds
 */
export function paced(act, every) {
  let waiting = false;
  let again = false;
  const call = () => {
    again = waiting;
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      if (again) call();
    }, every);
    act();
  };
  return call;
}
