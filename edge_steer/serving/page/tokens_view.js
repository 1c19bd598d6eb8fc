// An answer token by token: how probable each was with steering and without, and what else could have come.

import { postJson } from "./api.js";
import { el } from "./dom.js";
import { SIDES } from "./state.js";

const ALTERNATIVES = 5;
const SHIFTS = [0.02, 0.1, 0.3, 0.6]; // a change of probability this large is one shade more
const NAMES = { " ": "space", "\n": "line end", "\t": "tab" };
const MOVES = { ArrowLeft: -1, ArrowRight: 1 };

export class TokensView {
  element = el("div", { class: "tokens-view" }, el("p", { class: "hint" }, "Scoring the answer with steering and without…"));
  #answer;
  #details = el("div", { class: "token-details", "aria-live": "polite" });
  #options = [];
  #sides = {};
  #chosen = 0;

  /** vectors: what "steered" means here, whichever side the answer is of. */
  constructor(answer, side, vectors) {
    this.#answer = answer;
    this.side = side;
    this.#load({ steered: vectors, unsteered: [] });
  }

  async #load(steerings) {
    const { model, messages } = this.#answer.body;
    const request = { model, messages, answer: this.#answer.tokens.map((token) => token.id), top_logprobs: ALTERNATIVES };
    try {
      for (const side of SIDES) {
        const body = { ...request, control_vectors: steerings[side] };
        this.#sides[side] = (await postJson("v1/chat/logprobs", body)).content;
      }
      this.#draw();
    } catch (error) {
      this.element.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
    }
  }

  #draw() {
    this.#options = this.#sides.steered.map((token, index) => this.#option(token, index));
    const list = el(
      "div",
      {
        class: "tokens",
        role: "listbox",
        "aria-label": `Tokens of the ${this.side} answer`,
        "aria-orientation": "horizontal",
        onkeydown: (event) => this.#move(event),
      },
      ...this.#options,
    );
    this.element.replaceChildren(legend(), list, this.#details);
    const moved = this.#sides.steered.map((_, index) => Math.abs(this.#shift(index)));
    this.#choose(moved.indexOf(Math.max(...moved)));
    this.#details.scrollIntoView({ block: "nearest" });
  }

  #option(token, index) {
    return el(
      "span",
      {
        role: "option",
        class: "token",
        tabindex: "-1",
        "aria-selected": "false",
        "aria-label": token.token.trim() ? null : spoken(token.token),
        "data-shade": shade(this.#shift(index)),
        onclick: () => this.#choose(index, true),
      },
      visible(token.token),
    );
  }

  #shift(index) {
    return Math.exp(this.#sides.steered[index].logprob) - Math.exp(this.#sides.unsteered[index].logprob);
  }

  #move(event) {
    const last = this.#options.length - 1;
    const to = { Home: 0, End: last }[event.key] ?? (event.key in MOVES ? this.#chosen + MOVES[event.key] : -1);
    if (to < 0 || to > last) return;
    event.preventDefault();
    this.#choose(to, true);
  }

  #choose(index, focus = false) {
    const before = this.#options[this.#chosen];
    const option = this.#options[index];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    option.tabIndex = 0;
    option.setAttribute("aria-selected", "true");
    if (focus) option.focus();
    this.#chosen = index;
    this.#details.replaceChildren(
      el("p", { class: "token-summary" }, el("b", {}, quoted(this.#sides.steered[index].token)), ` ${shiftWords(this.#shift(index))}`),
      el("div", { class: "alternatives" }, ...SIDES.map((side) => alternatives(side, this.#sides[side][index]))),
    );
  }
}

function alternatives(side, token) {
  const among = token.top_logprobs.some((one) => one.id === token.id) ? [] : [token];
  const rows = [...token.top_logprobs, ...among].map((one) => {
    const probability = Math.exp(one.logprob);
    const row = el(
      "li",
      one.id === token.id ? { "aria-current": "true" } : {},
      el("code", {}, quoted(one.token)),
      el("span", {}, percent(probability)),
    );
    row.style.setProperty("--share", `${100 * probability}%`);
    return row;
  });
  return el("div", { class: `side ${side}` }, el("h4", {}, side === "steered" ? "Steered" : "Unsteered"), el("ol", {}, ...rows));
}

function legend() {
  return el(
    "p",
    { class: "legend" },
    el("span", { class: "token", "data-shade": "3" }, "likelier"),
    el("span", { class: "token", "data-shade": "-3" }, "less likely"),
    "with steering. Arrow keys move.",
  );
}

function shade(shift) {
  return Math.sign(shift) * SHIFTS.filter((least) => Math.abs(shift) >= least).length;
}

function shiftWords(shift) {
  const points = Math.abs(100 * shift);
  if (points < 0.05) return "is as likely with steering as without";
  return `is ${points.toFixed(points < 10 ? 1 : 0)} points ${shift > 0 ? "likelier" : "less likely"} with steering`;
}

function percent(probability) {
  const of100 = 100 * probability;
  if (of100 > 0 && of100 < 0.01) return "< 0.01%";
  return `${of100.toFixed(of100 >= 99.995 || of100 < 0.01 ? 0 : of100 < 10 ? 2 : 1)}%`;
}

/** A token as it stands in the text, with a sign for each line's end. */
function visible(text) {
  return text.replaceAll("\n", "↵\n");
}

/** A token that nobody could see, in words. */
function spoken(text) {
  return [...text].map((character) => NAMES[character] ?? character).join(" ") || "nothing";
}

/** A token by itself, with signs for what is not seen. */
function quoted(text) {
  return text.replaceAll("\n", "↵").replace(/^ | $/g, "␣") || "∅";
}
