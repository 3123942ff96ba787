/** The options of sampling: what each does, its limits, and sets of values that belong together. */

/**
 * @typedef {Object} Option
 * @property {string} name that of the request's field
 * @property {string} label
 * @property {string} help what it does
 * @property {number|null} standard the value that changes nothing; null for an empty field
 * @property {number} [least]
 * @property {number} [most]
 * @property {number} [slide] the end of its slider, if it has one
 * @property {number} [step]
 * @property {boolean} [whole] whether it is a whole number
 */

/** @type {Option[]} */
export const OPTIONS = [
  {
    name: "temperature",
    label: "Temperature",
    help: "Below 1 the model keeps to likely words, above 1 it surprises more. 0 always takes the most likely one.",
    standard: 1,
    least: 0,
    slide: 2,
    step: 0.05,
  },
  {
    name: "top_p",
    label: "Top-p",
    help: "Keeps the fewest most likely tokens whose probabilities reach this sum. 1 keeps all.",
    standard: 1,
    least: 0.01,
    most: 1,
    slide: 1,
    step: 0.01,
  },
  {
    name: "top_k",
    label: "Top-k",
    help: "Keeps only this many of the most likely tokens. 0 keeps all.",
    standard: 0,
    least: 0,
    slide: 200,
    step: 1,
    whole: true,
  },
  {
    name: "min_p",
    label: "Min-p",
    help: "Keeps tokens that are at least this share as likely as the most likely one. 0 keeps all.",
    standard: 0,
    least: 0,
    most: 1,
    slide: 1,
    step: 0.01,
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    help: "Makes every token that the reply has already less likely, which brings in new words. 0 is off.",
    standard: 0,
    least: -2,
    most: 2,
    slide: 2,
    step: 0.05,
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    help: "The same once for each time that the token was written, which works against repetition. 0 is off.",
    standard: 0,
    least: -2,
    most: 2,
    slide: 2,
    step: 0.05,
  },
  {
    name: "penalty_decay",
    label: "Penalty decay",
    help: "Both penalties fade by this factor with every further token. 1 never lets them fade.",
    standard: 1,
    least: 0,
    most: 1,
    slide: 1,
    step: 0.001,
  },
];

/** @type {Option[]} */
export const LIMITS = [
  {
    name: "max_tokens",
    label: "Longest reply",
    help: "In tokens; one that is cut can be continued. Leave it empty for the server’s limit.",
    standard: 500,
    least: 1,
    whole: true,
  },
  {
    name: "seed",
    label: "Seed",
    help: "The same seed gives the same reply to the same conversation. Leave it empty for a new one each time.",
    standard: null,
    least: 0,
    most: Number.MAX_SAFE_INTEGER,
    whole: true,
  },
];

const neutral = Object.fromEntries(OPTIONS.map(({ name, standard }) => [name, standard]));

/** @type {{name: string, help: string, values: Record<string, number|null>}[]} */
export const PRESETS = [
  { name: "OpenAI", help: "The model’s own probabilities, as OpenAI’s defaults are", values: neutral },
  {
    name: "Raven",
    help: "Top-p 0.5 and both penalties 0.4, with which Raven models reply better",
    values: { ...neutral, top_p: 0.5, presence_penalty: 0.4, frequency_penalty: 0.4 },
  },
];

/** @typedef {Record<string, number|null|string>} Values by the names of options; `stop` has a stop string on each line */

/** @returns {Values} */
export function standardValues() {
  return { ...Object.fromEntries([...OPTIONS, ...LIMITS].map(({ name, standard }) => [name, standard])), stop: "" };
}

/**
 * @param {Option} option
 * @param {string} text what was typed
 * @returns {{value?: number|null, problem?: string}}
 */
export function parse({ label, least = -Infinity, most = Infinity, whole, standard, name }, text) {
  if (!text.trim() && (standard === null || name === "max_tokens")) return { value: null };
  const value = text.trim() ? Number(text) : NaN;
  if (value >= least && value <= most && (!whole || Number.isSafeInteger(value))) return { value };
  const range = most === Infinity ? `of at least ${least}` : `from ${least} to ${most}`;
  return { problem: `${label}: expected a ${whole ? "whole " : ""}number ${range}.` };
}

/**
 * @param {Values} values
 * @returns {Record<string, any>} the fields of a request; what is not set is left out
 */
export function fieldsOf({ stop, ...values }) {
  const strings = String(stop)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replaceAll("\\n", "\n"));
  const set = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));
  return strings.length ? { ...set, stop: strings } : set;
}
