/**
 * A small part of Markdown: paragraphs, headings, lists, code, bold and italics, as elements. Links and pictures stay
 * text, so that a reply can lead nowhere and loads nothing.
 */

import { button, copy, make } from "./dom.js";

/**
 * @typedef {{kind: "text"|"heading"|"ul"|"ol"|"code", lines: string[], start?: number}} Block
 */

const FENCE = /^\s*(`{3,}|~{3,})/;
const HEADING = /^#{1,6}\s+(.*)$/;
const BULLET = /^\s{0,3}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,3}(\d{1,9})[.)]\s+(.*)$/;
// Of bounded length, so that marks without an end cost time in proportion to a text, and not to its square.
const SPAN = /(?<!`)(`+)(?!`)([^`]|[^`].{0,1000}?[^`])\1(?!`)|\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*|(?<![\w*])\*(?=[^\s*])(.{1,1000}?)(?<=[^\s*])\*(?![\w*])/gs;

/**
 * @param {string} text
 * @returns {Block[]}
 */
export function blocks(text) {
  /** @type {Block[]} */
  const found = [];
  /** @type {Block|null} */
  let open = null;
  let fence = "";
  /** @param {Block["kind"]} kind @param {string[]} lines @param {number} [start] */
  const begin = (kind, lines, start) => {
    open = { kind, lines, start };
    found.push(open);
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line)?.[1];
    const [, bullet] = BULLET.exec(line) ?? [];
    const [, number, item] = NUMBER.exec(line) ?? [];
    const heading = HEADING.exec(line)?.[1];
    const last = /** @type {Block|null} */ (open);
    if (fence) {
      if (mark?.startsWith(fence) && line.trim() === mark) {
        fence = "";
        open = null;
      } else last?.lines.push(line);
    } else if (mark) {
      fence = mark;
      begin("code", []);
    } else if (!line.trim()) open = null;
    else if (heading !== undefined) {
      begin("heading", [heading]);
      open = null;
    } else if (bullet !== undefined) last?.kind === "ul" ? last.lines.push(bullet) : begin("ul", [bullet]);
    else if (item !== undefined) last?.kind === "ol" ? last.lines.push(item) : begin("ol", [item], Number(number));
    else if (last && last.kind !== "text") last.lines[last.lines.length - 1] += `\n${line.trim()}`;
    else if (last) last.lines.push(line);
    else begin("text", [line]);
  }
  return found;
}

/**
 * @param {string} text
 * @returns {(Node|string)[]}
 */
function spans(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(SPAN)) {
    const [whole, , code, bold, italic] = match;
    parts.push(text.slice(end, match.index));
    if (code !== undefined) parts.push(make("code", {}, code));
    else if (bold !== undefined) parts.push(make("strong", {}, ...spans(bold)));
    else parts.push(make("em", {}, ...spans(italic)));
    end = match.index + whole.length;
  }
  return [...parts, text.slice(end)].filter((part) => part !== "");
}

/** @param {Block} block */
function element({ kind, lines, start }) {
  if (kind === "code") {
    const code = lines.join("\n");
    return make(
      "div",
      { class: "code", dir: "ltr" },
      button("copy", "Copy this code", () => copy(code)),
      make("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, make("code", {}, code)),
    );
  }
  if (kind === "text") return make("p", { dir: "auto" }, ...spans(lines.join("\n")));
  if (kind === "heading") return make("p", { class: "heading", dir: "auto" }, ...spans(lines[0]));
  const items = lines.map((line) => make("li", { dir: "auto" }, ...spans(line)));
  return make(kind, { start: kind === "ol" && start !== 1 ? start : null, dir: "auto" }, ...items);
}

/** @type {WeakMap<Element, string>} what each element was made from */
const sources = new WeakMap();

/**
 * Shows a text in a container. Blocks that have not changed keep their elements, and so what is selected in them.
 * @param {HTMLElement} container
 * @param {string} text
 */
export function show(container, text) {
  const wanted = blocks(text);
  wanted.forEach((block, i) => {
    const source = JSON.stringify(block);
    const present = /** @type {HTMLElement|undefined} */ (container.children[i]);
    if (present && sources.get(present) === source) return;
    const made = element(block);
    sources.set(made, source);
    if (present) present.replaceWith(made);
    else container.append(made);
  });
  while (container.children.length > wanted.length) container.lastElementChild?.remove();
}
