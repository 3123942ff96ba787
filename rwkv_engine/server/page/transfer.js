/** Conversations as a file. */

import { checkedConversation } from "./check.js";
import { newId } from "./tree.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

const FORMAT = "rwkv_engine conversations";

/**
 * @param {Conversation[]} conversations
 * @param {string[]} damaged entries of the storage that could not be read, so that a backup has them too
 */
export function exported(conversations, damaged) {
  const more = damaged.length ? { damaged } : {};
  return JSON.stringify({ format: FORMAT, version: 1, conversations, ...more }, null, 1);
}

/**
 * The conversations of a file. What is there already gets no second copy, and nothing that is there is replaced.
 * @param {string} text
 * @param {Conversation[]} present
 * @returns {{added: Conversation[], known: number, problems: string[]}}
 * @throws {Error} the file has another format; the message says so
 */
export function imported(text, present) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON, or only a part of the file is left");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations))
    throw new Error("it was not exported from this page");
  if (file.version !== 1) throw new Error("it was exported from a newer version of this page");
  const texts = new Map(present.map((conversation) => [conversation.id, JSON.stringify(checkedConversation(conversation))]));
  /** @type {Conversation[]} */
  const added = [];
  /** @type {string[]} */
  const problems = [];
  let known = 0;
  file.conversations.forEach((/** @type {any} */ given, /** @type {number} */ index) => {
    try {
      const conversation = checkedConversation(given);
      const same = texts.get(conversation.id);
      if (same === JSON.stringify(conversation)) known += 1;
      else {
        if (same) conversation.id = newId(); // another version of it: both are kept
        texts.set(conversation.id, JSON.stringify(conversation));
        added.push(conversation);
      }
    } catch (error) {
      problems.push(`conversation ${index + 1}: ${/** @type {Error} */ (error).message}`);
    }
  });
  return { added, known, problems };
}
