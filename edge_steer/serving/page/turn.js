// A question and its two answers, asked at the same time and with the same seed.

import { Answer } from "./answer.js";
import { Column } from "./column.js";
import { copyButton, el, iconButton } from "./dom.js";
import { SIDES, chatBody, controlVectors, randomSeed } from "./state.js";

export class Turn {
  answers = {};
  #columns = Object.fromEntries(SIDES.map((side) => [side, new Column(side)]));
  #question = el("div", { class: "question" });
  #seed = randomSeed();
  #actions;

  /** actions: `ask(turn)` asks again with the settings as they are then. */
  constructor(question, actions) {
    this.question = question;
    this.element = el(
      "section",
      { class: "turn", "aria-label": "Question and answers" },
      this.#question,
      el("div", { class: "columns" }, ...SIDES.map((side) => this.#columns[side].element)),
    );
    this.#actions = actions;
    this.#showQuestion();
  }

  /** Ask both sides at once. history: earlier messages of each side. fresh: draw another seed, where none is set. */
  async ask(server, settings, history, signal, { fresh, announcer }) {
    if (fresh) this.#seed = randomSeed();
    const seed = settings.sampling.seed ?? this.#seed;
    const vectors = { steered: controlVectors(settings.vectors), unsteered: [] };
    const asking = SIDES.map((side) => {
      const messages = [...history[side], { role: "user", content: this.question }];
      const answer = new Answer(chatBody(server.model, messages, vectors[side], { ...settings.sampling, seed }));
      const column = this.#columns[side];
      this.answers[side] = answer;
      column.show(answer, vectors.steered);
      return answer.ask(signal, () => {
        column.redraw();
        if (side === "steered") announcer.follow(answer.text, answer.ended);
      });
    });
    announcer.begin();
    announcer.say("Steered answer:");
    await Promise.all(asking);
    announcer.say("Both answers have ended.");
  }

  /** The messages that this turn adds to a later question of one side. */
  messages(side) {
    const text = this.answers[side]?.text;
    if (!text) return [];
    return [{ role: "user", content: this.question }, { role: "assistant", content: text }];
  }

  #showQuestion() {
    this.#question.replaceChildren(
      el("h2", { class: "question-text" }, this.question),
      el(
        "div",
        { class: "actions" },
        iconButton("again", "Answer again", () => this.#actions.ask(this)),
        iconButton("edit", "Edit the question", () => this.#edit()),
        copyButton("Copy the question", () => this.question),
      ),
    );
  }

  #edit() {
    const text = el("textarea", { "aria-label": "Edited question", rows: 3 });
    text.value = this.question;
    const form = el(
      "form",
      {
        class: "edit",
        onsubmit: (event) => {
          event.preventDefault();
          this.question = text.value.trim() || this.question;
          this.#showQuestion();
          this.#actions.ask(this);
        },
        onkeydown: (event) => {
          if (event.key === "Escape") this.#showQuestion();
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            form.requestSubmit();
          }
        },
      },
      text,
      el(
        "div",
        { class: "edit-row" },
        el("button", { type: "button", class: "quiet", onclick: () => this.#showQuestion() }, "Cancel"),
        el("button", { type: "submit", class: "primary" }, "Ask"),
      ),
    );
    this.#question.replaceChildren(form);
    text.focus();
  }
}
