// A request as a curl line or as Python, so that anybody can run it again.

import { copyButton, el, openDialog } from "./dom.js";
import { hasKey } from "./api.js";

const OF_OPENAI = ["model", "messages", "temperature", "top_p", "max_tokens", "seed"];

export function openShare(body) {
  const forms = { curl: curlLine(body), Python: pythonSnippet(body) };
  const code = el("code");
  const name = `share-${Date.now()}`;
  let chosen = "curl";
  const show = (form) => {
    chosen = form;
    code.textContent = forms[form];
  };
  const choices = Object.keys(forms).map((form) =>
    el("label", { class: "pill" }, el("input", { type: "radio", name, checked: form === chosen, onchange: () => show(form) }), form),
  );
  show(chosen);
  openDialog(
    "Ask this again from elsewhere",
    { class: "share" },
    el("div", { class: "share-row" }, el("div", { class: "pills", role: "radiogroup", "aria-label": "Form" }, ...choices), copyButton("Copy the code", () => forms[chosen])),
    el("pre", { tabindex: "0" }, code),
  );
}

/** A command for a POSIX shell. */
export function curlLine(body) {
  const key = hasKey() ? ` -H "Authorization: Bearer $EDGE_STEER_KEY"` : "";
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", `'\\''`);
  return `curl ${base()}v1/chat/completions -H 'Content-Type: application/json'${key} -d '${quoted}'`;
}

/** A script for OpenAI's client. JSON of texts, numbers and lists is Python too. */
export function pythonSnippet(body) {
  const own = Object.fromEntries(Object.entries(body).filter(([name]) => !OF_OPENAI.includes(name)));
  const fields = OF_OPENAI.filter((name) => name in body).map((name) => `    ${name}=${literal(body[name])},`);
  const key = hasKey() ? `os.environ["EDGE_STEER_KEY"]` : `"none"`;
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${base()}v1", api_key=${key})`,
    "answer = client.chat.completions.create(",
    ...fields,
    `    extra_body=${literal(own)},`,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

function literal(value) {
  return JSON.stringify(value, null, 4).replaceAll("\n", "\n    ");
}

function base() {
  return new URL(".", location.href).href;
}
