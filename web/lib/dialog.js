// @ts-check
/** A window over the page. */

import { h } from "./dom.js";

/** Show an element in a dialog that Escape, its button and a click beside it close. Returns the function that closes it. */
/** @param {Element} content @param {{title: string, close: string, closed?: () => void, wide?: boolean}} options close: the button's word */
export function modal(content, { title, close, closed = () => {}, wide = false }) {
  const button = h("button", { type: "button", class: "anima-button", text: close, on: { click: () => dialog.close() } });
  const names = wide ? "anima-dialog anima-wide" : "anima-dialog";
  const dialog = h("dialog", { class: names, "aria-label": title }, h("header", {}, h("h2", { text: title }), button), content);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => (dialog.remove(), closed()));
  // Keys that are meant for the dialog are not shortcuts of the graph.
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
  return () => dialog.close();
}
