// How answers are sampled, the system message, and whether a question goes on from the ones before it.

import { el } from "./dom.js";

const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0 },
  { name: "max_tokens", label: "Longest answer", min: 1 },
  { name: "top_k", label: "Top k", min: 0 },
  { name: "top_p", label: "Top p", min: 0, max: 1 },
  { name: "min_p", label: "Min p", min: 0, max: 1 },
  { name: "repeat_penalty", label: "Repeat penalty", min: 0.1 },
];

export function samplingPanel(settings) {
  const set = (name, value) => settings.set({ sampling: { ...settings.value.sampling, [name]: value } });
  return el(
    "section",
    { "aria-labelledby": "sampling-title" },
    el("h2", { id: "sampling-title" }, "Sampling"),
    el("div", { class: "fields two" }, ...FIELDS.map((field) => numberField(field, settings, set)), seedField(settings, set)),
    el(
      "details",
      {},
      el("summary", {}, "Conversation"),
      systemField(settings),
      followUp(settings),
    ),
  );
}

function numberField({ name, label, min, max }, settings, set) {
  const input = el("input", {
    type: "number", min, max, step: "any", inputmode: "decimal",
    oninput: () => {
      if (input.value !== "" && input.checkValidity()) set(name, Number(input.value));
    },
  });
  input.value = Number(settings.value.sampling[name].toFixed(4));
  return el("label", {}, el("span", {}, label), input);
}

function seedField(settings, set) {
  const input = el("input", {
    type: "number", min: 0, max: 2 ** 32 - 2, step: 1, placeholder: "random",
    oninput: () => {
      if (input.checkValidity()) set("seed", input.value === "" ? null : Number(input.value));
    },
  });
  return el("label", {}, el("span", {}, "Seed"), input);
}

function systemField(settings) {
  const text = el("textarea", { rows: 3, placeholder: "none", oninput: () => settings.set({ system: text.value.trim() }) });
  return el("label", { class: "field" }, el("span", {}, "System message"), text);
}

function followUp(settings) {
  const box = el("input", { type: "checkbox", onchange: () => settings.set({ followUp: box.checked }) });
  box.checked = settings.value.followUp;
  return el("label", { class: "check" }, box, el("span", {}, "Each question follows on from the ones before"));
}
