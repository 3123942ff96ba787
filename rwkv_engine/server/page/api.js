/** The server's addresses, which are relative to the page's, and its errors in plain words. */

import { events } from "./sse.js";
import { PLACE, keep, recall } from "./store.js";

/**
 * @typedef {Object} Model
 * @property {string} id
 * @property {string} [template]
 * @property {number} [most_new_tokens]
 */

/** What a server said, or that it said nothing. */
export class ServerError extends Error {
  /**
   * @param {string} message for the reader of the page
   * @param {{status?: number, code?: string, seconds?: number}} [about] `seconds` to wait before another try
   */
  constructor(message, { status = 0, code = "", seconds = 1 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.seconds = seconds;
  }
}

const KEY = "key";
let key = sessionKey() ?? recall(KEY);

/** @returns {string|null} */
function sessionKey() {
  try {
    return sessionStorage.getItem(PLACE + KEY);
  } catch {
    return null;
  }
}

/**
 * Uses an API key from now on, in this tab only or after the browser was closed too.
 * @param {string} given
 * @param {boolean} remember
 */
export function useKey(given, remember) {
  key = given;
  keep(KEY, remember && given ? given : null);
  try {
    sessionStorage.setItem(PLACE + KEY, given);
  } catch {
    // It is used until the page is left.
  }
}

/** @returns {boolean} */
export function hasKey() {
  return Boolean(key);
}

/**
 * @param {string} address
 * @param {RequestInit} [options]
 */
async function call(address, options = {}) {
  const headers = new Headers(options.headers);
  // A header has bytes, so that a key is sent as UTF-8, as curl would.
  if (key) headers.set("Authorization", `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`);
  let response;
  try {
    response = await fetch(address, { ...options, headers, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server cannot be reached. Is it still running, and is the network there?");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: null }));
  const after = Number(response.headers.get("retry-after"));
  throw new ServerError(inWords(response.status, error), {
    status: response.status,
    code: error?.code ?? "",
    seconds: after > 0 && after < 600 ? after : 1,
  });
}

/**
 * @param {number} status
 * @param {{message?: string, code?: string}|null} error
 */
function inWords(status, error) {
  if (status === 401) return "The server wants an API key, and did not accept this one.";
  if (status === 429) return "The server is busy.";
  if (status === 503 && error?.code === "loading") return "The model is being loaded.";
  if (status === 503 && error?.code === "draining") return "The server is shutting down.";
  if (status >= 500) return `The server has failed: ${error?.message ?? `status ${status}`}.`;
  return `The server has refused this: ${error?.message ?? `status ${status}`}`;
}

/** @returns {Promise<Model>} */
export async function model() {
  return (await (await call("v1/models")).json()).data[0];
}

/** @returns {Promise<void>} ends when the server takes on requests, else raises */
export async function ready() {
  await call("ready");
}

/**
 * Streams a reply.
 * @param {Record<string, any>} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{text?: string, end?: string, tokens?: number}>}
 */
export async function* chat(body, signal) {
  const more = { stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, ...more }),
    signal,
  });
  const lost = () => new ServerError("The connection was lost in the middle of the reply.");
  if (!response.body) throw lost();
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const { error, choices, usage } = JSON.parse(data);
      if (error) throw new ServerError(inWords(500, error), { status: 500 });
      const choice = choices[0];
      if (choice?.delta.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { end: choice.finish_reason };
      if (usage) yield { tokens: usage.completion_tokens };
    }
  } catch (error) {
    throw signal.aborted || error instanceof ServerError ? error : lost();
  }
  throw lost();
}
