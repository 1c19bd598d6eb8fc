// The turns of a chat: asks, stops, asks again, one at a time.

import { SIDES } from "./state.js";
import { Turn } from "./turn.js";

export class Conversation {
  turns = [];
  #abort = null;
  #place;
  #server;
  #settings;
  #announcer;
  #onChange;

  /** place: where turns go. settings: a Store. onChange: called when an answer begins or ends. */
  constructor(place, server, settings, announcer, onChange) {
    this.#place = place;
    this.#server = server;
    this.#settings = settings;
    this.#announcer = announcer;
    this.#onChange = onChange;
  }

  get running() {
    return this.#abort !== null;
  }

  get lastQuestion() {
    return this.turns.at(-1)?.question ?? "";
  }

  ask(question) {
    const turn = new Turn(question, { ask: (one) => this.answer(one, { fresh: true }) });
    this.turns.push(turn);
    this.#place.append(turn.element);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    turn.element.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
    return this.answer(turn, { fresh: false });
  }

  /** Answer a turn with the settings as they are now; what runs is stopped first. */
  async answer(turn, { fresh }) {
    this.stop();
    const abort = new AbortController();
    this.#abort = abort;
    this.#onChange();
    const settings = this.#settings.value;
    await turn.ask(this.#server, settings, this.#history(turn, settings), abort.signal, {
      fresh,
      announcer: this.#announcer,
    });
    if (this.#abort === abort) {
      this.#abort = null;
      this.#onChange();
    }
  }

  answerLastAgain() {
    if (this.turns.length) this.answer(this.turns.at(-1), { fresh: false });
  }

  stop() {
    this.#abort?.abort();
    this.#abort = null;
    this.#onChange();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.#place.replaceChildren();
    this.#onChange();
  }

  #history(turn, settings) {
    const system = settings.system ? [{ role: "system", content: settings.system }] : [];
    const earlier = settings.followUp ? this.turns.slice(0, this.turns.indexOf(turn)) : [];
    return Object.fromEntries(
      SIDES.map((side) => [side, [...system, ...earlier.flatMap((one) => one.messages(side))]]),
    );
  }
}
