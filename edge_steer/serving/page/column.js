// One answer as a card: its text as it comes, its figures, and what can be done with it.

import { copyButton, el, iconButton, oncePerFrame } from "./dom.js";
import { PHASES, short, spans } from "./state.js";
import { openShare } from "./share.js";
import { TokensView } from "./tokens_view.js";

const TITLES = { steered: "Steered", unsteered: "Unsteered" };
const FIGURES = [
  ["steps", "steps", 0],
  ["tokens", "tokens", 0],
  ["density", "tokens per step", 1],
  ["rate", "tokens/s", 0],
];

/** What steers an answer, in words: "0.33 dense". */
export function steeringWords(vectors) {
  return vectors.map((vector) => `${short(vector.scale)} ${vector.name}`).join(" + ").replaceAll("+ −", "− ") || "no steering";
}

/** Where vectors act, in words. */
function placeWords(vectors) {
  const of = ({ layers, phase }) =>
    `${layers ? `layers ${Array.isArray(layers) ? spans(layers) : layers}` : "its own layers"}, ${PHASES[phase]}`;
  const places = new Set(vectors.map(of));
  return places.size === 1 ? [...places][0] : vectors.map((vector) => `${vector.name}: ${of(vector)}`).join("; ");
}

/** A card for figures that change. */
export class Figures {
  element = el("dl", { class: "figures" });
  #values = {};

  constructor(names = FIGURES) {
    for (const [name, label] of names) {
      this.#values[name] = el("dd", {}, "–");
      this.element.append(el("div", {}, this.#values[name], el("dt", {}, label)));
    }
  }

  show(figures) {
    for (const [name, , digits] of FIGURES) {
      if (name in this.#values) this.#values[name].textContent = figures.tokens ? figures[name].toFixed(digits) : "–";
    }
  }
}

/** The card of one side of a turn. */
export class Column {
  #text = document.createTextNode("");
  #body = el("div", { class: "answer" });
  #figures = new Figures();
  #error = el("p", { class: "error", role: "alert" });
  #note = el("span", { class: "note" });
  #chip = el("span", { class: "chip" });
  #actions = el("div", { class: "actions" });
  #tokensButton;
  #answer;
  #steering;
  #tokensView = null;

  /** side: "steered" or "unsteered". */
  constructor(side) {
    this.side = side;
    const title = el("h3", {}, TITLES[side]);
    this.#tokensButton = iconButton("tokens", `Tokens of the ${side} answer`, () => this.#toggleTokens(), {
      "aria-pressed": "false",
    });
    this.#actions.append(
      this.#tokensButton,
      copyButton(`Copy the ${side} answer`, () => this.#answer.text),
      iconButton("share", `Share the ${side} request`, () => openShare(this.#answer.body)),
    );
    this.element = el(
      "article",
      { class: `column ${side}`, "aria-label": `${TITLES[side]} answer` },
      el("header", { class: "column-head" }, title, this.#chip, this.#actions),
      this.#error,
      this.#body,
      el("footer", { class: "column-foot" }, this.#figures.element, this.#note),
    );
    this.redraw = oncePerFrame(() => this.#draw());
  }

  /** Show this answer from now on. vectors: what steers the turn's steered side, whichever side this is. */
  show(answer, vectors) {
    this.#answer = answer;
    this.#steering = vectors;
    this.#closeTokens();
    this.#draw();
  }

  #draw() {
    const answer = this.#answer;
    this.#text.data = answer.text;
    this.#body.setAttribute("aria-busy", String(!answer.ended));
    this.element.dataset.state = answer.state;
    this.#tokensButton.disabled = !answer.ended || !answer.tokens.length;
    this.#error.textContent = answer.error;
    this.#note.textContent = note(answer);
    const steering = answer.steering ?? answer.body.control_vectors;
    this.#chip.textContent = steeringWords(steering);
    this.#chip.title = steering.length ? placeWords(steering) : "";
    this.#figures.show(answer.figures);
  }

  #toggleTokens() {
    if (this.#tokensView) {
      this.#closeTokens();
      return;
    }
    this.#tokensView = new TokensView(this.#answer, this.side, this.#steering);
    this.#body.replaceChildren(this.#tokensView.element);
    this.#tokensButton.setAttribute("aria-pressed", "true");
  }

  #closeTokens() {
    this.#tokensView = null;
    this.#body.replaceChildren(this.#text);
    this.#tokensButton.setAttribute("aria-pressed", "false");
  }
}

function note(answer) {
  if (answer.state === "stopped") return "stopped";
  return answer.finish === "length" ? "cut off at the longest answer" : "";
}
