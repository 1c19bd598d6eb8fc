// One question at five strengths at once: what reversed, halved and doubled steering would say.

import { Answer } from "./answer.js";
import { Figures, steeringWords } from "./column.js";
import { el, oncePerFrame, openDialog } from "./dom.js";
import { asTuned, chatBody, controlVectors, randomSeed } from "./state.js";

const FACTORS = [
  [-1, "reversed"],
  [0, "off"],
  [0.5, "half"],
  [1, "as set"],
  [2, "double"],
];
const FIGURES = [
  ["steps", "steps"],
  ["tokens", "tokens"],
  ["density", "per step"],
];

/** Ask `question` at five strengths in one batch. onChosen: called with the vectors of the one the user takes. */
export function openStrengths(question, server, settings, onChosen) {
  const { system, sampling } = settings.value;
  const vectors = atLeastOne(settings.value.vectors);
  const seed = sampling.seed ?? randomSeed();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: question }];
  const abort = new AbortController();
  const cards = FACTORS.map(([factor, name]) => {
    const scaled = vectors.map((vector) => ({ ...vector, scale: scaledBy(vector.scale, factor) }));
    const body = chatBody(server.model, messages, controlVectors(scaled), { ...sampling, seed });
    return strengthCard(name, new Answer(body), abort.signal, () => {
      dialog.close();
      onChosen(scaled);
    });
  });
  const dialog = openDialog(
    "Five strengths",
    { class: "strengths", onclose: () => { abort.abort(); dialog.remove(); } },
    el("p", { class: "asked" }, question),
    el("div", { class: "strength-cards" }, ...cards.map((card) => card.element)),
  );
  return Promise.all(cards.map((card) => card.ask()));
}

function strengthCard(name, answer, signal, use) {
  const text = document.createTextNode("");
  const error = el("p", { class: "error", role: "alert" });
  const figures = new Figures(FIGURES);
  const body = el("div", { class: "answer", "aria-busy": "true" }, text);
  const element = el(
    "article",
    { class: "column steered", "aria-label": `Steering ${name}` },
    el(
      "header",
      { class: "column-head" },
      el("h3", {}, name),
      el("span", { class: "chip" }, steeringWords(answer.body.control_vectors)),
      el("button", { type: "button", class: "pill", onclick: use }, "Use this"),
    ),
    error,
    body,
    el("footer", { class: "column-foot" }, figures.element),
  );
  const redraw = oncePerFrame(() => {
    text.data = answer.text;
    error.textContent = answer.error;
    figures.show(answer.figures);
    element.dataset.state = answer.state;
    body.setAttribute("aria-busy", String(!answer.ended));
  });
  return { element, ask: () => answer.ask(signal, redraw) };
}

function scaledBy(scale, factor) {
  return Number((scale * factor).toPrecision(6));
}

/** The vectors as set; if all are off, with the first as tuned. */
function atLeastOne(vectors) {
  if (vectors.some((vector) => vector.scale !== 0)) return vectors;
  return vectors.map((vector, index) => (index === 0 ? asTuned(vector) : vector));
}
