/** Runs one reply: waits for a server that is busy or not ready, takes in the pieces, and measures their speed. */

import { ServerError, chat, ready } from "./api.js";
import { messages } from "./tree.js";

/** @typedef {import("./tree.js").Conversation} Conversation */
/** @typedef {import("./tree.js").Turn} Turn */

const MOST_TRIES = 5; // while the server is busy

/**
 * @param {number} seconds
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * Waits until the server is ready.
 * @param {(text: string) => void} tell
 * @param {AbortSignal} [signal]
 */
export async function whenReady(tell, signal) {
  for (;;) {
    try {
      return await ready();
    } catch (error) {
      if (!(error instanceof ServerError) || error.code !== "loading") throw error;
      tell(error.message);
      await pause(1, signal);
    }
  }
}

/**
 * Writes a reply into its turn, and says there how it ended. Never throws, except what asks for an API key.
 * @param {Conversation} conversation
 * @param {Turn} turn the reply; if it has text already, it is continued
 * @param {Record<string, any>} options those of sampling
 * @param {{changed: () => void, tell: (text: string) => void, signal: AbortSignal}} watch
 */
export async function run(conversation, turn, options, { changed, tell, signal }) {
  const continues = turn.text.trim() !== "";
  const before = continues ? (turn.stats?.tokens ?? 0) : 0;
  if (!continues) turn.text = "";
  turn.end = turn.problem = null;
  const more = continues ? { continue_final_message: true } : {};
  const body = { ...options, ...more, messages: messages(conversation, turn, continues) };
  let began = 0;
  let first = 0;
  let last = 0;
  let pieces = 0;
  let tokens = 0;
  try {
    for (let tries = 1; ; tries += 1) {
      try {
        began = performance.now();
        for await (const news of chat(body, signal)) {
          if (news.text) {
            last = performance.now();
            first ||= last;
            pieces += 1;
            turn.text += news.text;
            tell("");
            changed();
          }
          if (news.end) turn.end = news.end === "length" ? "length" : "stop";
          if (news.tokens) tokens = news.tokens;
        }
        break;
      } catch (error) {
        const refused = error instanceof ServerError && !pieces;
        if (refused && error.code === "loading") await whenReady(tell, signal);
        else if (refused && error.status === 429 && tries < MOST_TRIES) {
          tell(`${error.message} Trying again in ${error.seconds} s.`);
          await pause(error.seconds, signal);
        } else throw error;
      }
    }
  } catch (error) {
    turn.end = signal.aborted ? "stopped" : "lost";
    if (!signal.aborted) turn.problem = /** @type {Error} */ (error).message;
    if (error instanceof ServerError && error.status === 401) throw error;
  } finally {
    tell("");
    if (first) {
      const n = tokens || pieces; // without usage, which comes last, a piece is nearly always a token
      const rate = last > first ? ((n - 1) / (last - first)) * 1000 : 0;
      turn.stats = { tokens: before + n, first: (first - began) / 1000, rate };
    }
    changed();
  }
}
