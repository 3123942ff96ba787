/**
 * A conversation is a tree of turns: a message that was edited, and a reply that was tried again, stand beside the
 * first version. What is shown is one path from the root, which goes through the chosen child of each turn.
 *
 * @typedef {Object} Stats
 * @property {number} tokens
 * @property {number} first seconds to the first piece
 * @property {number} rate tokens per second from then on; 0 if it is not known
 *
 * @typedef {Object} Turn
 * @property {string} id
 * @property {string|null} parent
 * @property {"user"|"assistant"} role
 * @property {string} text
 * @property {"stop"|"length"|"stopped"|"lost"|null} end why a reply ended; null for messages
 * @property {string|null} problem what went wrong, in plain words
 * @property {Stats|null} stats
 *
 * @typedef {Object} Conversation
 * @property {string} id
 * @property {string} title empty for the beginning of the first message
 * @property {string} system the system prompt
 * @property {number} updated milliseconds since 1970
 * @property {Turn[]} turns parents stand before their children
 * @property {Record<string, string>} chosen the chosen child by the id of a turn; "" for the first turns
 */

/** @returns {string} an id; `crypto.randomUUID` needs a secure context, this does not */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (word) => word.toString(36)).join("");
}

/** @returns {Conversation} */
export function newConversation() {
  return { id: newId(), title: "", system: "", updated: Date.now(), turns: [], chosen: {} };
}

/**
 * @param {Conversation} conversation
 * @param {string|null} parent
 */
export function children(conversation, parent) {
  return conversation.turns.filter((turn) => turn.parent === parent);
}

/**
 * @param {Conversation} conversation
 * @param {string|null} parent
 * @returns {Turn|undefined} the chosen child, or else the newest
 */
function chosenChild(conversation, parent) {
  const all = children(conversation, parent);
  return all.find((turn) => turn.id === conversation.chosen[parent ?? ""]) ?? all.at(-1);
}

/**
 * @param {Conversation} conversation
 * @returns {Turn[]} the turns that are shown
 */
export function path(conversation) {
  const turns = [];
  for (let turn = chosenChild(conversation, null); turn; turn = chosenChild(conversation, turn.id)) turns.push(turn);
  return turns;
}

/**
 * Adds a turn, and chooses it.
 * @param {Conversation} conversation
 * @param {string|null} parent
 * @param {"user"|"assistant"} role
 * @param {string} [text]
 * @returns {Turn}
 */
export function add(conversation, parent, role, text = "") {
  /** @type {Turn} */
  const turn = { id: newId(), parent, role, text, end: null, problem: null, stats: null };
  conversation.turns.push(turn);
  choose(conversation, turn);
  return turn;
}

/**
 * @param {Conversation} conversation
 * @param {Turn} turn
 */
export function choose(conversation, turn) {
  conversation.chosen[turn.parent ?? ""] = turn.id;
}

/**
 * Removes a turn and all that follows it.
 * @param {Conversation} conversation
 * @param {Turn} turn
 */
export function remove(conversation, turn) {
  const gone = new Set([turn.id]);
  for (const { id, parent } of conversation.turns) if (parent !== null && gone.has(parent)) gone.add(id);
  conversation.turns = conversation.turns.filter(({ id }) => !gone.has(id));
  for (const [parent, child] of Object.entries(conversation.chosen))
    if (gone.has(parent) || gone.has(child)) delete conversation.chosen[parent];
}

/**
 * The messages of a request for a reply.
 * @param {Conversation} conversation
 * @param {Turn} reply
 * @param {boolean} continues whether the reply has begun
 */
export function messages(conversation, reply, continues) {
  const known = new Map(conversation.turns.map((turn) => [turn.id, turn]));
  /** @type {Turn[]} */
  const turns = [];
  for (let turn = known.get(reply.parent ?? ""); turn; turn = known.get(turn.parent ?? "")) turns.unshift(turn);
  // A message whose reply failed is left out together with that reply: the model has never answered it.
  const failed = new Set(turns.filter((turn) => turn.role === "assistant" && !turn.text.trim()));
  const said = turns.filter((turn, i) => !failed.has(turn) && !failed.has(turns[i + 1]));
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const begun = continues ? [reply] : [];
  return [...system, ...[...said, ...begun].map(({ role, text }) => ({ role, content: text }))];
}

/** @param {Conversation} conversation */
export function titleOf(conversation) {
  const first = (chosenChild(conversation, null)?.text ?? "").trim().replace(/\s+/g, " ");
  return conversation.title || [...first].slice(0, 60).join("") || "New conversation";
}
