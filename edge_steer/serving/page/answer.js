// One answer: what was asked, what has come so far, and its figures. It knows nothing of how it is drawn.

import { Refusal, streamChat } from "./api.js";

const BLANK_LINE = /\n[ \t]*\n/;

/** An answer to `body`. state: "waiting", "running", "done", "stopped" or "failed". */
export class Answer {
  text = "";
  tokens = [];
  steering = null; // what the server says it applied, at the end
  state = "waiting";
  finish = "";
  error = "";
  #firstToken = 0;
  #lastToken = 0;
  #rate = 0;

  constructor(body) {
    this.body = body;
  }

  /** Ask the server; `changed` is called whenever there is more. */
  async ask(signal, changed) {
    try {
      for await (const chunk of streamChat(this.body, signal)) {
        this.#take(chunk);
        changed();
      }
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      this.error = this.state === "failed" ? error.message : "";
      if (this.state === "failed" && !(error instanceof Refusal)) console.error(error);
    }
    changed();
  }

  get ended() {
    return this.state !== "waiting" && this.state !== "running";
  }

  /** Steps are paragraphs, as the evaluation counts them; density is tokens per step. */
  get figures() {
    const steps = this.text.split(BLANK_LINE).filter((part) => part.trim()).length;
    const tokens = this.tokens.length;
    return { steps, tokens, density: tokens / Math.max(steps, 1), rate: this.#rate || this.#liveRate() };
  }

  #take(chunk) {
    const [choice] = chunk.choices;
    if (chunk.timings) this.#rate = chunk.timings.predicted_per_second;
    if (chunk.steering) this.steering = chunk.steering;
    this.finish = choice?.finish_reason ?? this.finish;
    this.text += choice?.delta.content ?? "";
    for (const token of choice?.logprobs?.content ?? []) {
      this.state = "running";
      this.#lastToken = performance.now();
      this.#firstToken ||= this.#lastToken;
      this.tokens.push(token);
    }
  }

  #liveRate() {
    const seconds = (this.#lastToken - this.#firstToken) / 1000;
    return seconds > 0 ? (this.tokens.length - 1) / seconds : 0;
  }
}
