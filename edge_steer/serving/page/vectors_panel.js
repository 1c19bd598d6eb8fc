// The vectors: strength as slider and number, layers, phase; and presets.

import { el, iconButton } from "./dom.js";
import { lensPanel } from "./lens_panel.js";
import { PHASES, asTuned, short, spans, withPreset } from "./state.js";

const NICE = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];
const SLIDER_STEPS = 200; // on each side of 0

export function vectorsPanel(server, settings, onMoved) {
  const cards = server.vectors.map((listed, index) => vectorCard(listed, index, settings, onMoved));
  const empty = el("p", { class: "hint" }, "This server has no vectors. Start it with --vector to steer.");
  return el(
    "section",
    { "aria-labelledby": "steering-title" },
    el("h2", { id: "steering-title" }, "Steering"),
    cards.length ? presets(server, settings, onMoved) : empty,
    ...cards,
    cards.length ? againOnMove(settings) : null,
  );
}

function presets(server, settings, onMoved) {
  const choose = (name, vectors) =>
    el("button", { type: "button", class: "pill", onclick: () => {
      settings.set({ vectors: vectors() });
      onMoved();
    } }, name);
  const all = () => settings.value.vectors;
  return el(
    "div",
    { class: "pills", role: "group", "aria-label": "Presets" },
    choose("Off", () => all().map((vector) => ({ ...vector, scale: 0 }))),
    choose("As tuned", () => all().map((vector, i) => (i && server.vectors[i].scale === 0 ? { ...vector, scale: 0 } : asTuned(vector)))),
    ...server.presets.map((preset) => choose(preset.name, () => withPreset(all(), preset.steering))),
  );
}

function vectorCard(listed, index, settings, onMoved) {
  const { name } = listed;
  const change = (changes) =>
    settings.set({ vectors: settings.value.vectors.map((one, i) => (i === index ? { ...one, ...changes } : one)) });
  const reach = sliderReach(listed);
  const slider = el("input", {
    type: "range", min: -reach, max: reach, step: reach / SLIDER_STEPS, "aria-label": `Strength of ${name}`,
    oninput: () => change({ scale: Number(slider.value) }),
    onchange: onMoved,
  });
  const number = el("input", {
    type: "number", step: "any", "aria-label": `Strength of ${name} as a number`,
    oninput: () => {
      if (number.checkValidity() && number.value !== "") change({ scale: Number(number.value) });
    },
    onchange: onMoved,
  });
  const layers = el("input", {
    type: "text", inputmode: "text", placeholder: spans(listed.layers), spellcheck: "false",
    oninput: () => change({ layers: layers.value.trim() }),
    onchange: onMoved,
  });
  const phase = el(
    "select",
    { onchange: () => { change({ phase: phase.value }); onMoved(); } },
    ...Object.entries(PHASES).map(([value, words]) => el("option", { value }, words)),
  );
  const tuned = iconButton("again", `${name} as tuned: ${short(listed.tuned.scale)}`, () => {
    change(asTuned(settings.value.vectors[index]));
    onMoved();
  });
  const element = el(
    "div",
    { class: "vector", role: "group", "aria-label": `Vector ${name}` },
    el("div", { class: "vector-head" }, el("span", { class: "vector-name" }, name), number, tuned),
    slider,
    el("div", { class: "scale-marks", "aria-hidden": "true" }, el("span", {}, short(-reach)), el("span", {}, "0"), el("span", {}, short(reach))),
    el(
      "div",
      { class: "fields two" },
      el("label", {}, el("span", {}, "Layers"), layers),
      el("label", {}, el("span", {}, "Acts on"), phase),
    ),
    lensPanel(name),
  );
  const show = ({ vectors }) => {
    const vector = vectors[index];
    slider.value = vector.scale;
    const filled = (100 * (vector.scale + reach)) / (2 * reach);
    slider.style.setProperty("--at", `${Math.min(100, Math.max(0, filled))}%`);
    if (document.activeElement !== number) number.value = Number(vector.scale.toFixed(4));
    if (document.activeElement !== layers) layers.value = vector.layers;
    phase.value = vector.phase;
    element.classList.toggle("off", vector.scale === 0);
  };
  settings.subscribe(show);
  show(settings.value);
  return element;
}

/** How far the slider goes: about three times the tuned strength. */
function sliderReach({ tuned, scale }) {
  const wanted = 3 * Math.max(Math.abs(tuned.scale), Math.abs(scale)) || 1;
  const power = 10 ** Math.floor(Math.log10(wanted));
  return Number((power * NICE.find((nice) => nice * power >= wanted * 0.999)).toPrecision(3));
}

function againOnMove(settings) {
  const box = el("input", { type: "checkbox", onchange: () => settings.set({ againOnMove: box.checked }) });
  box.checked = settings.value.againOnMove;
  return el("label", { class: "check" }, box, el("span", {}, "Answer again when steering changes"));
}
