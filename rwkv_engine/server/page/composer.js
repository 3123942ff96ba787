/** The field for messages, the keyboard, and where the conversation is scrolled to. */

import { find } from "./dom.js";
import { openHelp, openSettings } from "./dialogs.js";
import { begin } from "./sidebar.js";
import { edit } from "./turns.js";

/** @typedef {import("./chat.js").Chat} Chat */

const NEAR = 80; // pixels from the end, within which the page follows a reply that grows
let follows = true;

/** @param {Chat} chat */
export function buildComposer(chat) {
  const field = find("message");
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
    find("send").disabled = !field.value.trim();
  };
  const send = () => {
    const text = field.value;
    if (!text.trim() || chat.isRunning) return;
    field.value = "";
    fit();
    follows = true;
    chat.send(text);
  };
  find("composer").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    send();
    field.focus();
  });
  find("stop").addEventListener("click", () => {
    chat.stop();
    field.focus();
  });
  field.addEventListener("input", fit);
  field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    // While a word is composed, as in Chinese or Japanese, Enter ends that; 229 is how Safari tells of it.
    if (event.isComposing || event.keyCode === 229) return;
    const last = chat.shown.findLast((turn) => turn.role === "user");
    if (event.key === "Enter" && !event.shiftKey) send();
    else if (event.key === "ArrowUp" && !field.value && last && !chat.isRunning) edit(chat, last);
    else return;
    event.preventDefault();
  });
  fit();
}

/** @param {Chat} chat */
export function buildKeys(chat) {
  /** @type {Record<string, () => void>} by the key's place, because Alt makes other characters on some keyboards */
  const shortcuts = {
    KeyN: () => begin(chat),
    KeyR: () => {
      const last = chat.shown.at(-1);
      if (last?.role === "assistant" && !chat.isRunning) chat.retry(last);
    },
    Comma: openSettings,
    Slash: openHelp,
  };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && chat.isRunning && !event.isComposing) chat.stop();
    else if (event.altKey && !event.ctrlKey && !event.metaKey && shortcuts[event.code]) shortcuts[event.code]();
    else return;
    event.preventDefault();
  });
}

/** Notes whether the reader is at the end. */
function note() {
  const area = find("scroll");
  follows = area.scrollHeight - area.scrollTop - area.clientHeight < NEAR;
  find("to-end").hidden = follows;
}

export function buildScroll() {
  find("scroll").addEventListener("scroll", note);
  find("to-end").addEventListener("click", () => {
    follow(true);
    find("message").focus();
  });
}

/**
 * Scrolls to the end, if the reader is there or wants to be.
 * @param {boolean} [always]
 */
export function follow(always = false) {
  const area = find("scroll");
  if (follows || always) area.scrollTop = area.scrollHeight;
  note(); // what is shown may have become shorter without being scrolled
}
