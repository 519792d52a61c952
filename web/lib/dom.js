// @ts-check
/** Elements, and numbers as people read them. */

/**
 * Make an element. Props: `class`, `text`, `on` (event -> function), `style` (property -> value), any attribute; those that are null,
 * undefined or false are left out, true is an attribute without a value.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [props]
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, props = {}, ...children) {
  const { class: names, text, on = {}, style = {}, ...attributes } = props;
  const element = document.createElement(tag);
  if (names) element.className = names;
  if (text != null) element.textContent = String(text);
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  for (const [property, value] of Object.entries(style)) element.style.setProperty(property, value);
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child != null && child !== false) element.append(/** @type {any} */ (child));
  return element;
}

/** Say how long something takes: "20 s", "3 min 20 s", "2 h 05 min"; "—" for what is not known. @param {number | null | undefined} seconds */
export function clock(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "—";
  const [whole, two] = [Math.max(0, Math.round(seconds)), (/** @type {number} */ n) => String(n).padStart(2, "0")];
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

/** Say a number with so many decimals, a very small one as 8.33e-5; "—" for what is not known. @param {number | null | undefined} x */
export function figure(x, digits = 3) {
  if (x == null || !Number.isFinite(x)) return "—";
  if (x === 0 || Math.abs(x) >= 10 ** -digits) return x.toFixed(digits);
  return x.toExponential(2).replace(/\.?0+e/, "e");
}
