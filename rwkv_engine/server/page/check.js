/** Checks what comes from a file or from storage, which may be damaged or made by someone else. */

/** @typedef {import("./tree.js").Conversation} Conversation */

const ENDS = ["stop", "length", "stopped", "lost"];

/**
 * @param {boolean} holds
 * @param {string} problem
 */
function require(holds, problem) {
  if (!holds) throw new Error(problem);
}

/**
 * @param {any} value
 * @returns {boolean} whether it is an object with names
 */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @param {any} value */
const isText = (value) => typeof value === "string";

/** @param {any} value */
const isCount = (value) => typeof value === "number" && Number.isFinite(value) && value >= 0;

/**
 * A conversation with exactly the fields that it should have.
 * @param {any} given
 * @returns {Conversation}
 * @throws {Error} it is not one; the message says why
 */
export function checkedConversation(given) {
  require(isObject(given), "it is not an object");
  for (const field of ["id", "title", "system"]) require(isText(given[field]), `its ${field} is not a text`);
  require(given.id !== "", "its id is empty");
  require(isCount(given.updated), "its time is not a number");
  require(Array.isArray(given.turns), "its turns are not a list");
  require(isObject(given.chosen), "its choices are not an object");
  /** @type {Map<string, string>} */
  const roles = new Map();
  const turns = given.turns.map((/** @type {any} */ turn, /** @type {number} */ index) => {
    const name = `turn ${index + 1}`;
    require(isObject(turn) && isText(turn.id) && isText(turn.text), `${name} has no id or no text`);
    require(turn.id !== "" && !roles.has(turn.id), `${name} has the id of another`);
    require(turn.parent === null || roles.has(turn.parent), `what ${name} follows is missing`);
    const before = turn.parent === null ? "assistant" : roles.get(turn.parent);
    require(turn.role === (before === "user" ? "assistant" : "user"), `${name} is not by whose turn it is`);
    roles.set(turn.id, turn.role);
    const { id, parent, role, text } = turn;
    const end = ENDS.includes(turn.end) ? turn.end : role === "assistant" ? "lost" : null;
    const { tokens, first, rate } = isObject(turn.stats) ? turn.stats : {};
    const stats = isCount(tokens) && isCount(first) && isCount(rate) ? { tokens, first, rate } : null;
    return { id, parent, role, text, end, problem: isText(turn.problem) ? turn.problem : null, stats };
  });
  const chosen = Object.fromEntries(Object.entries(given.chosen).filter(([, child]) => roles.has(String(child))));
  const { id, title, system, updated } = given;
  return { id, title, system, updated, turns, chosen: /** @type {Record<string, string>} */ (chosen) };
}
