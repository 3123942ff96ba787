/** The list of conversations, and their way to and from files. */

import { button, download, find, focus, make } from "./dom.js";
import { notify } from "./say.js";
import { exported, imported } from "./transfer.js";
import { titleOf } from "./tree.js";

/** @typedef {import("./chat.js").Chat} Chat */
/** @typedef {import("./tree.js").Conversation} Conversation */

const narrow = window.matchMedia("(max-width: 48rem)");

/** @param {boolean} shown */
export function showSidebar(shown) {
  document.body.classList.toggle("with-sidebar", shown);
  const sidebar = find("sidebar");
  sidebar.inert = !shown;
  // On a phone it covers the conversation, which must not be reached then.
  find("page").inert = shown && narrow.matches;
  find("cover").hidden = !(shown && narrow.matches);
  find("show-sidebar").setAttribute("aria-expanded", String(shown));
  if (shown && narrow.matches) find("hide-sidebar").focus();
}

/** @returns {boolean} */
const isShown = () => document.body.classList.contains("with-sidebar");

/** @param {Chat} chat */
export function buildSidebar(chat) {
  const close = () => {
    showSidebar(false);
    find("show-sidebar").focus();
  };
  find("show-sidebar").addEventListener("click", () => showSidebar(!isShown()));
  find("hide-sidebar").addEventListener("click", close);
  find("cover").addEventListener("click", close);
  find("sidebar").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape" || !narrow.matches) return;
    event.stopPropagation();
    close();
  });
  narrow.addEventListener("change", () => showSidebar(!narrow.matches));
  showSidebar(!narrow.matches);
  find("new").addEventListener("click", () => begin(chat));
  find("export").addEventListener("click", () => {
    const day = new Date().toISOString().slice(0, 10);
    download(`conversations-${day}.json`, exported(chat.conversations, chat.damaged));
  });
  const file = find("import-file");
  find("import").addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    file.value = ""; // so that the same file can be chosen again
    if (chosen) take(chat, await chosen.text());
  });
}

/** @param {Chat} chat */
export function begin(chat) {
  chat.open();
  if (narrow.matches) showSidebar(false);
  find("message").focus();
}

/**
 * @param {Chat} chat
 * @param {string} text that of a file
 */
function take(chat, text) {
  try {
    const { added, known, problems } = imported(text, chat.conversations);
    const unsaved = added.filter((conversation) => !chat.put(conversation)).length;
    const parts = [`Imported ${added.length} ${added.length === 1 ? "conversation" : "conversations"}.`];
    if (known) parts.push(`${known} ${known === 1 ? "is" : "are"} here already.`);
    if (unsaved) parts.push(`${unsaved} will be gone when this page is left: the browser’s storage is full or switched off.`);
    if (problems.length) parts.push(`Left out: ${problems.join("; ")}.`);
    notify(parts.join(" "));
  } catch (error) {
    notify(`This file cannot be imported: ${/** @type {Error} */ (error).message}. Nothing was changed.`);
  }
}

/** @param {Chat} chat */
export function drawSidebar(chat) {
  const focused = /** @type {HTMLElement|null} */ (document.activeElement)?.dataset.key;
  find("conversations").replaceChildren(...chat.conversations.map((conversation) => item(chat, conversation)));
  if (focused?.startsWith("conversation-")) focus(find("conversations"), `[data-key="${CSS.escape(focused)}"]`);
  const n = chat.damaged.length;
  find("damaged").hidden = !n;
  find("damaged").textContent = n
    ? `${n} saved ${n === 1 ? "conversation" : "conversations"} cannot be read. Export keeps a copy of what is left.`
    : "";
}

/**
 * @param {Chat} chat
 * @param {Conversation} conversation
 */
function item(chat, conversation) {
  const open = () => {
    chat.open(conversation);
    if (narrow.matches) showSidebar(false);
    find("message").focus();
  };
  const remove = () => {
    chat.delete(conversation);
    find("new").focus();
    notify("The conversation was deleted.", { label: "Undo", press: () => chat.put(conversation) });
  };
  const title = titleOf(conversation);
  const key = `conversation-${conversation.id}`;
  const isOpen = conversation === chat.current;
  const props = { type: "button", class: "title", dir: "auto", "aria-current": isOpen ? "true" : null, title, data: { key } };
  return make(
    "li",
    {},
    make("button", { ...props, on: { click: open } }, title),
    button("delete", `Delete “${title}”`, remove),
  );
}
