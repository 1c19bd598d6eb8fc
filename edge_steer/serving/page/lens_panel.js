// What a vector says in tokens, read by the server when it is first opened.

import { getJson } from "./api.js";
import { el } from "./dom.js";

const SHOWN = 6; // tokens of a layer at either end

export function lensPanel(name) {
  const content = el("div", { class: "lens", "aria-live": "polite" });
  const panel = el("details", { class: "lens-panel" }, el("summary", {}, "What it says"), content);
  panel.addEventListener("toggle", () => panel.open && read(name, content), { once: true });
  return panel;
}

async function read(name, content) {
  content.replaceChildren(el("p", { class: "hint" }, "Reading \u2026"));
  try {
    const reading = await getJson(`v1/control-vectors/${encodeURIComponent(name)}/lens`);
    content.replaceChildren(
      el("p", { class: "hint" }, "Tokens that each layer raises and lowers, by cosine with the unembedding. Faint ones score no more than random directions do."),
      el("dl", {}, ...reading.layers.flatMap(layer)),
    );
  } catch (error) {
    content.replaceChildren(el("p", { class: "hint" }, error.message));
  }
}

function layer({ layer: number, null: random, top, bottom }) {
  const tokens = (sign, list) =>
    el("dd", {}, sign, ...list.slice(0, SHOWN).map((one) => token(one, Math.abs(one.score) > random.largest)));
  const term = el("dt", {}, `Layer ${number}`);
  return random ? [term, tokens("+", top), tokens("\u2212", bottom)] : [term, el("dd", {}, "zero")];
}

function token({ text, score }, beyond) {
  return el("bdi", { class: beyond ? "lens-token" : "lens-token faint", title: score.toFixed(3) }, JSON.stringify(text).slice(1, -1));
}
