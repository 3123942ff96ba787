/** Builds elements. Text becomes text nodes only, and nothing here or elsewhere parses markup. */

/**
 * @param {string} tag
 * @param {Record<string, any>} [props] attributes; `on` has listeners by event, `data` what goes into the dataset
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {any} the element; callers know its kind from the tag
 */
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") for (const [event, listen] of Object.entries(value)) element.addEventListener(event, listen);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  for (const child of children) if (child) element.append(child);
  return element;
}

/**
 * @param {string} id that of an element of index.html
 * @returns {any}
 */
export function find(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/**
 * Gives the focus to what a selector finds in a container, if there is such an element.
 * @param {Element|undefined} container
 * @param {string} selector
 */
export function focus(container, selector) {
  /** @type {HTMLElement|null} */
  const found = container?.querySelector(selector) ?? null;
  found?.focus();
}

/** @param {string} name that of a symbol in index.html */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * A button that shows an icon, and a label too if `shown` is given.
 * @param {string} picture
 * @param {string} label what it does, for the tooltip and for screen readers
 * @param {() => void} press
 * @param {{key?: string, disabled?: boolean, shown?: string}} [options] `key` finds the button again after a redraw
 */
export function button(picture, label, press, { key, disabled, shown } = {}) {
  const props = { type: "button", class: shown ? "labelled" : "icon", disabled, on: { click: press } };
  const names = shown ? { title: label } : { title: label, "aria-label": label };
  return make("button", { ...props, ...names, data: key ? { key } : {} }, icon(picture), shown && make("span", {}, shown));
}

/**
 * Copies a text; also without a secure context, where browsers have no `navigator.clipboard`.
 * @param {string} text
 */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { class: "hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/**
 * Offers a text as a file.
 * @param {string} name
 * @param {string} text
 */
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
