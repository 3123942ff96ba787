/** What the page tells: the state of the server, short notices, and what only screen readers hear. */

import { find, make } from "./dom.js";

let hiding = 0;

/**
 * Tells screen readers something once; a reply is read when it has ended, not token by token.
 * @param {string} text
 */
export function announce(text) {
  find("announcements").textContent = text;
}

/**
 * Shows a line above the message field until it is replaced; an empty one hides it.
 * @param {string} text
 * @param {{label: string, press: () => void}} [action]
 */
export function showState(text, action) {
  const line = find("state");
  if (line.dataset.text === text && !action) return; // else a screen reader would read it again
  line.dataset.text = text;
  line.hidden = !text;
  line.replaceChildren(text);
  if (action) line.append(make("button", { type: "button", class: "plain", on: { click: action.press } }, action.label));
}

/**
 * Shows a notice for some seconds.
 * @param {string} text
 * @param {{label: string, press: () => void}} [action]
 */
export function notify(text, action) {
  const notice = find("notice");
  const hide = () => {
    clearTimeout(hiding);
    notice.hidden = true;
  };
  const press = () => {
    hide();
    action?.press();
  };
  notice.replaceChildren(make("span", {}, text));
  notice.append(make("button", { type: "button", class: "plain", on: { click: press } }, action?.label ?? "Close"));
  notice.hidden = false;
  clearTimeout(hiding);
  hiding = window.setTimeout(hide, 12000);
}
