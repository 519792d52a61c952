// @ts-check
/**
 * Looks up the words of the pages, which stand in web/words/<language>.json. The server's sentences and errors are English: people search for
 * them; those on how a training goes have words of their own, see `said`.
 */

/** @import { Table, Translate } from "./types" */

const NUMBER = /\d+(\.\d+)?/g;

/** Return a function that looks words up in a table, else in others. `{name}` in a text becomes values.name. @type {(table: Table, others?: Table) => Translate} */
export function translator(table, others = {}) {
  return (key, values = {}) => (table[key] ?? others[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** Return a sentence of the server with its numbers in the page's words, `said.at step #`; as it is where there are none. @type {(t: Translate, text: string) => string} */
export function said(t, text) {
  const form = text.replace(NUMBER, "#");
  const key = `said.${form}`;
  const known = t(key, { ...text.match(NUMBER) });
  return known === key ? text : known;
}
