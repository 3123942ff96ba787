/** Shows the turns of a conversation, with what can be done with each. */

import { button, copy, find, focus, make } from "./dom.js";
import { show } from "./markdown.js";
import { notify } from "./say.js";
import { children } from "./tree.js";

/** @typedef {import("./chat.js").Chat} Chat */
/** @typedef {import("./tree.js").Turn} Turn */

const ENDS = {
  length: "Cut at the longest length of a reply.",
  stopped: "Stopped.",
  lost: "Not finished.",
};
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** @type {{id: string, text: string}|null} the message that is being edited, and what was typed */
let editing = null;
/** @type {Map<Turn, {element: HTMLElement, source: string}>} what is shown, and what it was made from */
const articles = new Map();

/** @param {Turn} turn */
export function statsOf({ stats }) {
  if (!stats) return "";
  const rate = stats.rate ? ` · ${number.format(stats.rate)} tok/s` : "";
  const first = stats.first < 1 ? `${number.format(stats.first * 1000)} ms` : `${number.format(stats.first)} s`;
  return `${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}${rate} · first after ${first}`;
}

/**
 * Draws all turns. What has not changed keeps its elements, and so what is selected or typed there; what had the focus
 * has it afterwards, if it is still there.
 * @param {Chat} chat
 */
export function drawTurns(chat) {
  const list = find("turns");
  const focused = /** @type {HTMLElement|null} */ (document.activeElement)?.dataset.key;
  const shown = chat.shown;
  const elements = shown.map((turn) => {
    const isLast = turn === shown.at(-1);
    const what = [turn, isLast, versionsOf(chat, turn), chat.isRunning];
    const source = JSON.stringify(editing?.id === turn.id ? "editing" : what);
    const present = articles.get(turn);
    if (present?.source === source) return present.element;
    const element = article(chat, turn, isLast);
    articles.set(turn, { element, source });
    return element;
  });
  for (const turn of articles.keys()) if (!shown.includes(turn)) articles.delete(turn);
  for (const child of [...list.children]) if (!elements.includes(child)) child.remove();
  elements.forEach((element, i) => {
    if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
  });
  find("welcome").hidden = shown.length > 0;
  if (focused && document.activeElement === document.body) focus(list, `[data-key="${CSS.escape(focused)}"]`);
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 * @returns {{at: number, of: number}} which of the versions of a turn it is
 */
function versionsOf(chat, turn) {
  const all = children(chat.current, turn.parent);
  return { at: all.indexOf(turn), of: all.length };
}

/** @param {Turn} turn a reply that has more text than before */
export function drawText(turn) {
  const text = articles.get(turn)?.element.querySelector(".text");
  if (text) show(/** @type {HTMLElement} */ (text), turn.text);
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 */
export function edit(chat, turn) {
  editing = { id: turn.id, text: turn.text };
  drawTurns(chat);
  /** @type {HTMLTextAreaElement|null} */
  const area = articles.get(turn)?.element.querySelector("textarea") ?? null;
  area?.focus();
  area?.setSelectionRange(area.value.length, area.value.length);
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 * @param {boolean} isLast
 */
function article(chat, turn, isLast) {
  const isReply = turn.role === "assistant";
  const isWriting = isReply && isLast && chat.isRunning;
  const made = make("article", {
    class: `turn ${isReply ? "reply" : "message"}`,
    "aria-label": isReply ? "Reply" : "Your message",
    "aria-busy": isWriting ? "true" : null,
  });
  if (editing?.id === turn.id && !isReply) {
    made.append(editor(chat, turn, editing));
    return made;
  }
  const text = make("div", { class: "text", dir: "auto" });
  if (isReply) show(text, turn.text);
  else text.append(turn.text);
  made.append(text);
  if (isWriting) {
    made.append(make("p", { class: "writing" }, make("span", { class: "dots", "aria-hidden": "true" }), "Writing …"));
    return made;
  }
  if (turn.end && turn.end !== "stop")
    made.append(make("p", { class: turn.problem ? "problem" : "hint" }, turn.problem ?? ENDS[turn.end]));
  made.append(make("div", { class: "tools" }, ...tools(chat, turn, isLast), make("span", { class: "stats" }, statsOf(turn))));
  return made;
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 * @param {boolean} isLast
 */
function tools(chat, turn, isLast) {
  const isReply = turn.role === "assistant";
  const key = (/** @type {string} */ name) => `${turn.parent}-${turn.role}-${name}`;
  const disabled = chat.isRunning;
  const copyText = async () => {
    await copy(turn.text);
    notify("Copied.");
  };
  const all = [...versions(chat, turn), button("copy", "Copy", copyText, { key: key("copy") })];
  if (isReply) {
    if (isLast && turn.end !== "stop" && turn.text.trim()) {
      const press = () => chat.reply(turn);
      all.push(button("play", "Continue this reply", press, { key: key("continue"), disabled, shown: "Continue" }));
    }
    const shown = turn.problem ? "Try again" : undefined;
    all.push(button("retry", "Try again", () => chat.retry(turn), { key: key("retry"), disabled, shown }));
  } else all.push(button("edit", "Edit", () => edit(chat, turn), { key: key("edit"), disabled }));
  if (!isReply || versionsOf(chat, turn).of > 1) {
    const label = isReply ? "Delete this version" : "Delete this and what follows";
    all.push(button("delete", label, () => remove(chat, turn), { key: key("delete"), disabled }));
  }
  return all;
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 */
function versions(chat, turn) {
  const { at, of } = versionsOf(chat, turn);
  if (of < 2) return [];
  const all = children(chat.current, turn.parent);
  const go = (/** @type {string} */ picture, /** @type {string} */ label, /** @type {number} */ to) =>
    button(picture, label, () => all[to] && chat.choose(all[to]), {
      key: `${turn.parent}-${turn.role}-${picture}`,
      disabled: chat.isRunning || !all[to],
    });
  return [
    make(
      "span",
      { class: "versions", role: "group", "aria-label": `Version ${at + 1} of ${of}` },
      go("previous", "Previous version", at - 1),
      make("span", {}, `${at + 1}/${of}`),
      go("next", "Next version", at + 1),
    ),
  ];
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 */
function remove(chat, turn) {
  const { turns, chosen } = chat.current;
  const before = { turns: [...turns], chosen: { ...chosen } };
  const conversation = chat.current;
  chat.remove(turn);
  find("message").focus();
  notify("Deleted.", {
    label: "Undo",
    press: () => {
      chat.open(conversation);
      chat.change(before);
    },
  });
}

/**
 * @param {Chat} chat
 * @param {Turn} turn
 * @param {{text: string}} draft
 */
function editor(chat, turn, draft) {
  const key = `${turn.id}-editor`;
  const area = make("textarea", { dir: "auto", "aria-label": "Your message", rows: "3", data: { key } });
  area.value = draft.text;
  area.addEventListener("input", () => {
    draft.text = area.value;
  });
  const close = () => {
    editing = null;
    drawTurns(chat);
    focus(articles.get(turn)?.element, '[data-key$="-edit"]');
  };
  const send = () => {
    if (!area.value.trim() || chat.isRunning) return;
    editing = null;
    find("message").focus();
    chat.ask(turn.parent, area.value);
  };
  area.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return make(
    "div",
    { class: "editor" },
    area,
    make("p", { class: "hint" }, "The earlier version and its replies are kept beside this one."),
    make(
      "div",
      { class: "row" },
      make("button", { type: "button", class: "plain", on: { click: close } }, "Cancel"),
      make("button", { type: "button", class: "primary", on: { click: send } }, "Send"),
    ),
  );
}
