// @ts-check
/** Looks up the words of the pages, which stand in web/words/<language>.json. The server's sentences and errors are English: people search for them. */

/** @import { Table, Translate } from "./types" */

/** Return a function that looks words up in a table, else in others. `{name}` in a text becomes values.name. @type {(table: Table, others?: Table) => Translate} */
export function translator(table, others = {}) {
  return (key, values = {}) => (table[key] ?? others[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
