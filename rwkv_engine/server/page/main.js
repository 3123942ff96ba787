/** Puts the page together, and finds out which model the server has. */

import { ServerError, model } from "./api.js";
import { Chat } from "./chat.js";
import { buildComposer, buildKeys, buildScroll, follow } from "./composer.js";
import { askKey, buildDialogs } from "./dialogs.js";
import { find, make } from "./dom.js";
import { pause, whenReady } from "./reply.js";
import { announce, notify, showState } from "./say.js";
import { buildSettings, options, showSettings } from "./settings.js";
import { buildSidebar, drawSidebar } from "./sidebar.js";
import { titleOf } from "./tree.js";
import { drawText, drawTurns, statsOf } from "./turns.js";

const STARTERS = ["Tell me a story about the sea.", "How does a rainbow come about?", "Give me an idea for this evening."];

/** @type {import("./api.js").Model|null} */
let served = null;
/** @type {import("./tree.js").Conversation|null} */
let drawn = null;
/** @type {import("./tree.js").Turn|null} the reply that is drawn with the next frame */
let growing = null;

const chat = new Chat({
  redraw,
  grown(turn) {
    if (!growing)
      requestAnimationFrame(() => {
        if (growing) drawText(growing);
        growing = null;
        follow();
      });
    growing = turn;
  },
  ended(turn) {
    announce(turn.problem ?? `Reply: ${turn.text} ${statsOf(turn)}`);
    follow();
  },
  tell: (text) => showState(text),
  askKey: () => askKey("The server wants an API key, or another one."),
  unsaved: () => notify("This browser’s storage is full or switched off, so that this is not saved. Export keeps it in a file."),
  options: () => options(),
});

function redraw() {
  const other = drawn !== chat.current;
  drawn = chat.current;
  drawTurns(chat);
  drawSidebar(chat);
  const title = titleOf(chat.current);
  find("heading").textContent = title;
  document.title = chat.current.turns.length ? title : "Chat";
  if (document.activeElement !== find("title")) find("title").value = title;
  find("send").hidden = chat.isRunning;
  find("stop").hidden = !chat.isRunning;
  showSettings(chat.current.system, served);
  if (other) showState("");
  follow(other);
}

function buildHeader() {
  const title = find("title");
  title.addEventListener("change", () => chat.change({ title: title.value.trim() }));
  title.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && !event.isComposing) find("message").focus();
  });
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  find("theme").addEventListener("click", () => {
    const system = dark.matches ? "dark" : "light";
    const shown = document.documentElement.dataset.theme ?? system;
    const wanted = shown === "dark" ? "light" : "dark";
    // Back at the system's choice, the page follows the system again.
    if (wanted === system) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = wanted;
    try {
      if (wanted === system) localStorage.removeItem("rwkv:theme");
      else localStorage.setItem("rwkv:theme", wanted);
    } catch {
      // It lasts until the page is left.
    }
  });
}

/** Finds the model; goes on trying until the server has told it, or the reader does not give a key. */
async function connect() {
  for (;;) {
    try {
      await whenReady((text) => showState(text));
      served = await model();
      find("model").textContent = served.id;
      showState("");
      showSettings(chat.current.system, served);
      return;
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      if (error.status === 401) {
        showState("");
        if (await askKey("This server answers to those who have an API key.")) continue;
        return showState(error.message, { label: "Enter a key", press: connect });
      }
      showState(error.message);
      await pause(3);
    }
  }
}

for (const text of STARTERS) {
  const press = () => chat.send(text);
  find("starters").append(make("button", { type: "button", class: "plain", on: { click: press } }, text));
}
find("change-key").addEventListener("click", async () => {
  find("settings").close();
  if (await askKey("It is used from the next request on.")) await connect();
});
buildDialogs();
buildHeader();
buildSettings((system) => chat.change({ system }));
buildSidebar(chat);
buildComposer(chat);
buildKeys(chat);
buildScroll();
redraw();
connect();
if (window.matchMedia("(hover: hover)").matches) find("message").focus(); // where no keyboard would cover the page
