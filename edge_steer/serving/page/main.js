// The page: asks the server what it has, puts the parts together, and asks what the user types.

import { getJson, setKey } from "./api.js";
import { Announcer } from "./announcer.js";
import { Conversation } from "./conversation.js";
import { el, icon } from "./dom.js";
import { samplingPanel } from "./sampling_panel.js";
import { Store, initialSettings } from "./state.js";
import { openStrengths } from "./strengths.js";
import { vectorsPanel } from "./vectors_panel.js";

const EXAMPLES = [
  "Tom has 20 pears. Tom finds 11 pears. Tom loses 25 pears. How many pears does Tom have now?",
  "Mia has 12 shells. Mia buys 3 boxes of 5 shells. Mia gives away 9 shells. How many shells does Mia have now?",
  "Ben has 40 coins. Ben splits the coins into 4 equal piles and keeps one. Ben doubles the number of coins. How many coins does Ben have now?",
];
const byId = (id) => document.getElementById(id);

/** What the server has, as the page uses it. */
async function describeServer() {
  const [vectors, models, props] = await Promise.all(["v1/control-vectors", "v1/models", "props"].map(getJson));
  const [base] = models.data;
  const presets = models.data
    .filter((model) => model.parent)
    .map((model) => ({ name: model.id.slice(base.id.length + 1), steering: model.steering }));
  const { params, n_ctx: context } = props.default_generation_settings;
  return { model: base.id, context, vectors, presets, sampling: params };
}

function begin(server) {
  const settings = new Store(initialSettings(server));
  const question = byId("question");
  const send = byId("send");
  const conversation = new Conversation(byId("turns"), server, settings, new Announcer(byId("announcer")), () => {
    send.textContent = conversation.running ? "Stop" : "Ask";
    send.classList.toggle("stop", conversation.running);
    byId("welcome").hidden = conversation.turns.length > 0;
  });
  const ask = (text) => {
    question.value = "";
    fitHeight(question);
    conversation.ask(text);
  };
  const onMoved = () => {
    if (settings.value.againOnMove) conversation.answerLastAgain();
  };

  byId("model").textContent = server.model;
  byId("vectors").replaceChildren(vectorsPanel(server, settings, onMoved));
  byId("sampling").replaceChildren(samplingPanel(settings));
  byId("examples").replaceChildren(
    ...EXAMPLES.map((text) => el("li", {}, el("button", { type: "button", onclick: () => ask(text) }, text))),
  );
  byId("new-chat").addEventListener("click", () => {
    conversation.clear();
    question.focus();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (conversation.running) conversation.stop();
    else if (question.value.trim()) ask(question.value.trim());
  });
  question.addEventListener("input", () => fitHeight(question));
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!conversation.running && question.value.trim()) ask(question.value.trim());
  });
  byId("try-strengths").hidden = !server.vectors.length;
  byId("try-strengths").addEventListener("click", () => {
    const text = question.value.trim() || conversation.lastQuestion || EXAMPLES[0];
    openStrengths(text, server, settings, (vectors) => {
      settings.set({ vectors });
      onMoved();
    });
  });
  question.focus({ preventScroll: true });
}

function fitHeight(textarea) {
  textarea.style.height = "auto";
  textarea.style.height = `${textarea.scrollHeight}px`;
}

function showTheme() {
  const button = byId("theme");
  const other = currentTheme() === "dark" ? "light" : "dark";
  button.replaceChildren(icon(other === "light" ? "sun" : "moon"));
  button.setAttribute("aria-label", `Switch to ${other}`);
  button.title = `Switch to ${other}`;
  button.onclick = () => {
    setTheme(other);
    showTheme();
  };
}

/** Ask for the key that the server wants. */
function askForKey() {
  const key = el("input", { type: "password", autocomplete: "off", required: true });
  const form = el(
    "form",
    { class: "key", onsubmit: (event) => { event.preventDefault(); setKey(key.value); start(); } },
    el("label", {}, el("span", {}, "This server wants a key. It is kept until this tab is closed."), key),
    el("button", { type: "submit", class: "primary" }, "Go on"),
  );
  byId("notice").replaceChildren(form);
}

async function start() {
  byId("notice").replaceChildren();
  try {
    begin(await describeServer());
  } catch (error) {
    if (error.status === 401) askForKey();
    else byId("notice").replaceChildren(el("p", { class: "error" }, error.message, " ", el("button", { type: "button", class: "quiet", onclick: start }, "Try again")));
    if (!("status" in error)) console.error(error);
  }
}

showTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
matchMedia("(min-width: 62rem)").addEventListener("change", () => byId("panel").hidePopover());
start();
