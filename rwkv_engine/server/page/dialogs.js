/** The dialogs: settings, keyboard shortcuts, and the one that asks for an API key. */

import { hasKey, useKey } from "./api.js";
import { find } from "./dom.js";

/** Makes the buttons of dialogs work, and a click beside one close it. */
export function buildDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      const pressed = /** @type {Element} */ (event.target);
      if (pressed === dialog || pressed.closest("[data-close]")) dialog.close();
    });
  }
  find("show-settings").addEventListener("click", openSettings);
  find("show-help").addEventListener("click", openHelp);
}

export function openSettings() {
  find("key-state").textContent = hasKey() ? "Requests are sent with your key." : "Requests are sent without a key.";
  find("settings").showModal();
}

export function openHelp() {
  find("help").showModal();
}

/**
 * Asks for an API key.
 * @param {string} reason
 * @returns {Promise<boolean>} whether one was given
 */
export function askKey(reason) {
  const dialog = find("key-dialog");
  const field = find("key");
  find("key-reason").textContent = reason;
  field.value = "";
  if (!dialog.open) dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const done = new AbortController();
    const { signal } = done;
    const end = (/** @type {boolean} */ given) => {
      done.abort();
      resolve(given);
    };
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      useKey(field.value.trim(), find("remember-key").checked);
      field.value = "";
      end(true); // first, so that closing does not count as a refusal
      dialog.close();
    };
    find("key-form").addEventListener("submit", submit, { signal });
    dialog.addEventListener("close", () => end(false), { signal });
  });
}
