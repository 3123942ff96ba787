/** The panel of settings: the system prompt of a conversation, and the sampling options of all of them. */

import { find, make } from "./dom.js";
import { LIMITS, OPTIONS, PRESETS, fieldsOf, parse, standardValues } from "./options.js";
import { keep, recall } from "./store.js";

/** @typedef {import("./options.js").Option} Option */

const values = { ...standardValues(), ...known(recall("options")) };
/** @type {(() => void)[]} show the present values */
const shows = [];

/**
 * @param {any} kept
 * @returns {Record<string, any>} of what was kept, the values that are still possible
 */
function known(kept) {
  const all = [...OPTIONS, ...LIMITS].filter(({ name }) => kept && name in kept);
  const parsed = all.map((option) => [option.name, parse(option, kept[option.name] === null ? "" : String(kept[option.name])).value]);
  const stop = typeof kept?.stop === "string" ? { stop: kept.stop } : {};
  return { ...Object.fromEntries(parsed.filter(([, value]) => value !== undefined)), ...stop };
}

/** @returns {Record<string, any>} the fields of a request */
export function options() {
  return fieldsOf(values);
}

/** @param {Record<string, any>} changes */
function change(changes) {
  Object.assign(values, changes);
  keep("options", values);
  for (const show of shows) show();
}

/** @param {Option} option */
function row(option) {
  const { name, label, help, least, most, slide, step } = option;
  const id = `option-${name}`;
  const field = make("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", "aria-describedby": `${id}-help` });
  const range = { type: "range", min: least, max: slide, step, "aria-label": `${label}, slider`, tabindex: "-1" };
  const slider = slide === undefined ? null : make("input", range);
  const problem = make("p", { class: "problem", role: "alert", hidden: true });
  const input = () => {
    const { value, problem: wrong } = parse(option, field.value);
    field.setAttribute("aria-invalid", String(Boolean(wrong)));
    problem.hidden = !wrong;
    problem.textContent = wrong ?? "";
    if (value !== undefined) change({ [name]: value });
  };
  field.addEventListener("input", input);
  field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const steps = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!steps || !step) return;
    event.preventDefault();
    const next = Math.min(most ?? Infinity, Math.max(least ?? -Infinity, Number(field.value) + steps * step));
    field.value = String(Number(next.toFixed(6)));
    input();
  });
  slider?.addEventListener("input", () => {
    field.value = slider.value;
    input();
  });
  shows.push(() => {
    const text = values[name] === null ? "" : String(values[name]);
    if (slider) slider.value = text;
    if (document.activeElement !== field) {
      field.value = text;
      field.removeAttribute("aria-invalid");
      problem.hidden = true;
    }
  });
  const labelled = make("label", { for: id }, label);
  return make("div", { class: "option" }, labelled, slider, field, make("p", { class: "hint", id: `${id}-help` }, help), problem);
}

/** Fills the panel; `change` is called with a system prompt. */
export function buildSettings(/** @type {(system: string) => void} */ changeSystem) {
  const presets = PRESETS.map(({ name, help, values: set }) => {
    const press = make("button", { type: "button", class: "plain", title: help, on: { click: () => change(set) } }, name);
    shows.push(() => {
      press.setAttribute("aria-pressed", String(Object.entries(set).every(([option, value]) => values[option] === value)));
    });
    return press;
  });
  find("presets").append(...presets);
  find("options").append(...OPTIONS.map(row));
  find("limits").prepend(...LIMITS.map(row));
  const stop = find("stop-strings");
  stop.addEventListener("input", () => change({ stop: stop.value }));
  shows.push(() => {
    if (document.activeElement !== stop) stop.value = values.stop;
  });
  const system = find("system");
  system.addEventListener("input", () => changeSystem(system.value));
  for (const show of shows) show();
}

/**
 * @param {string} system
 * @param {import("./api.js").Model|null} model
 */
export function showSettings(system, model) {
  if (document.activeElement !== find("system")) find("system").value = system;
  const limit = model?.most_new_tokens ? `, and at most ${model.most_new_tokens} tokens in a reply` : "";
  find("template").textContent = model?.template
    ? `The server formats conversations with the template “${model.template}”${limit}. Whoever starts it chooses these.`
    : "";
}
