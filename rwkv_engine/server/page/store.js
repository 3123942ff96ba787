/** Conversations and settings in the browser's local storage, one entry each; nobody else has them. */

import { checkedConversation } from "./check.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

// Several servers may be below one origin, behind a proxy; each has its own conversations.
export const PLACE = `rwkv:${location.pathname.replace(/[^/]*$/, "")}:`;
const CONVERSATION = `${PLACE}conversation:`;

/**
 * @param {string} name
 * @returns {any} what was kept under a name, or null
 */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(PLACE + name) ?? "null");
  } catch {
    return null; // it is damaged, or storage is switched off
  }
}

/**
 * Keeps a value under a name; null forgets it.
 * @param {string} name
 * @param {any} value
 */
export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(PLACE + name);
    else localStorage.setItem(PLACE + name, JSON.stringify(value));
  } catch {
    // Settings that are not kept are a small loss; `save` tells of conversations.
  }
}

/**
 * All conversations, the newest first, and the texts of entries that are damaged. Those stay where they are.
 * @returns {{conversations: Conversation[], damaged: string[]}}
 */
export function load() {
  const conversations = [];
  const damaged = [];
  try {
    for (const name of Object.keys(localStorage).filter((key) => key.startsWith(CONVERSATION))) {
      const text = localStorage.getItem(name) ?? "";
      try {
        conversations.push(checkedConversation(JSON.parse(text)));
      } catch {
        damaged.push(text);
      }
    }
  } catch {
    // Storage is switched off.
  }
  conversations.sort((a, b) => b.updated - a.updated);
  return { conversations, damaged };
}

/**
 * @param {Conversation} conversation
 * @returns {boolean} whether it was saved; storage may be full or switched off
 */
export function save(conversation) {
  try {
    localStorage.setItem(CONVERSATION + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

/** @param {Conversation} conversation */
export function forget(conversation) {
  try {
    localStorage.removeItem(CONVERSATION + conversation.id);
  } catch {
    // Storage is switched off, so that it was never there.
  }
}

/** @param {() => void} changed is called when another tab has changed a conversation */
export function onChange(changed) {
  window.addEventListener("storage", (event) => {
    if (!event.key || event.key.startsWith(CONVERSATION)) changed();
  });
}
