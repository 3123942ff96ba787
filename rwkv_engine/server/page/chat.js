/** The conversations and what can be done with them; the page shows what this tells it. */

import { ServerError } from "./api.js";
import { run } from "./reply.js";
import { forget, load, onChange, save } from "./store.js";
import { add, choose, newConversation, path, remove } from "./tree.js";

/** @typedef {import("./tree.js").Conversation} Conversation */
/** @typedef {import("./tree.js").Turn} Turn */

/**
 * @typedef {Object} Watcher what the page does when something happens
 * @property {() => void} redraw something other than the text of a reply has changed
 * @property {(turn: Turn) => void} grown a reply has more text
 * @property {(turn: Turn) => void} ended a reply that is shown has ended
 * @property {(text: string) => void} tell the state of a request that waits
 * @property {() => Promise<boolean>} askKey whether an API key was given
 * @property {() => void} unsaved a conversation could not be saved
 * @property {() => Record<string, any>} options those of sampling
 */

export class Chat {
  /** @param {Watcher} watcher */
  constructor(watcher) {
    this.watcher = watcher;
    const { conversations, damaged } = load();
    this.conversations = conversations;
    this.damaged = damaged;
    this.current = conversations[0] ?? newConversation();
    /** @type {Map<string, AbortController>} the requests by the id of their conversation */
    this.running = new Map();
    onChange(() => this.reload());
    window.addEventListener("pagehide", () => this.conversations.filter(({ id }) => this.running.has(id)).forEach(save));
  }

  /** @returns {Turn[]} */
  get shown() {
    return path(this.current);
  }

  /** @returns {boolean} whether a reply to the current conversation is being written */
  get isRunning() {
    return this.running.has(this.current.id);
  }

  /** Takes over what another tab has changed, except what is being written here. */
  reload() {
    const { conversations, damaged } = load();
    const kept = this.conversations.filter(({ id }) => this.running.has(id));
    const others = conversations.filter(({ id }) => !this.running.has(id));
    this.conversations = [...kept, ...others].sort((a, b) => b.updated - a.updated);
    this.damaged = damaged;
    const same = this.conversations.find(({ id }) => id === this.current.id);
    if (same || this.current.turns.length) this.current = same ?? this.conversations[0] ?? newConversation();
    this.watcher.redraw();
  }

  /** @param {Conversation} [conversation] a new one by default */
  open(conversation = newConversation()) {
    this.current = conversation;
    this.watcher.redraw();
  }

  /**
   * @param {Conversation} conversation
   * @param {number} updated
   * @returns {boolean} whether it was saved; the page is told if not
   */
  save(conversation, updated = Date.now()) {
    conversation.updated = updated;
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort((a, b) => b.updated - a.updated);
    const saved = save(conversation);
    if (!saved) this.watcher.unsaved();
    return saved;
  }

  /** @param {Partial<Conversation>} changes its title or system prompt */
  change(changes) {
    Object.assign(this.current, changes);
    this.save(this.current);
    this.watcher.redraw();
  }

  /** @param {Conversation} conversation */
  delete(conversation) {
    this.running.get(conversation.id)?.abort();
    this.conversations = this.conversations.filter((other) => other !== conversation);
    forget(conversation);
    if (this.current === conversation) this.current = this.conversations[0] ?? newConversation();
    this.watcher.redraw();
  }

  /**
   * @param {Conversation} conversation one that was deleted or imported
   * @returns {boolean} whether it was saved
   */
  put(conversation) {
    const saved = this.save(conversation, conversation.updated);
    this.open(conversation);
    return saved;
  }

  /** @param {string} text of a message after the turns that are shown */
  send(text) {
    return this.ask(this.shown.at(-1)?.id ?? null, text);
  }

  /**
   * @param {string|null} parent
   * @param {string} text of a message after that turn; beside others if it has some
   */
  ask(parent, text) {
    const message = add(this.current, parent, "user", text);
    return this.reply(add(this.current, message.id, "assistant"));
  }

  /** @param {Turn} turn a reply, beside which another one is written */
  retry(turn) {
    // One that has failed before its first word is not worth keeping.
    if (!turn.text.trim()) remove(this.current, turn);
    return this.reply(add(this.current, turn.parent, "assistant"));
  }

  /** @param {Turn} turn */
  choose(turn) {
    choose(this.current, turn);
    this.save(this.current);
    this.watcher.redraw();
  }

  /**
   * Removes a turn and what follows it; a message whose only reply goes, goes with it.
   * @param {Turn} turn
   */
  remove(turn) {
    remove(this.current, turn);
    this.save(this.current);
    this.watcher.redraw();
  }

  stop() {
    this.running.get(this.current.id)?.abort();
  }

  /**
   * @param {Turn} turn the reply to write, or to continue if it has begun
   * @param {Conversation} conversation
   */
  async reply(turn, conversation = this.current) {
    if (this.running.has(conversation.id)) return;
    const controller = new AbortController();
    this.running.set(conversation.id, controller);
    this.save(conversation);
    this.watcher.redraw();
    const isShown = () => this.current === conversation;
    let saved = Date.now();
    const changed = () => {
      if (isShown()) this.watcher.grown(turn);
      if (Date.now() - saved < 1000 || !this.conversations.includes(conversation)) return;
      saved = Date.now();
      this.save(conversation);
    };
    const tell = (/** @type {string} */ text) => {
      if (isShown()) this.watcher.tell(text);
    };
    const watch = { changed, tell, signal: controller.signal };
    let wantsKey = false;
    try {
      await run(conversation, turn, this.watcher.options(), watch);
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      wantsKey = true;
    } finally {
      this.running.delete(conversation.id);
      if (this.conversations.includes(conversation)) this.save(conversation);
      this.watcher.redraw();
    }
    if (wantsKey && (await this.watcher.askKey())) await this.reply(turn, conversation);
    else if (isShown()) this.watcher.ended(turn);
  }
}
