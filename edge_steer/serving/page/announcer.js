// Tells screen readers what comes, a sentence at a time: single tokens would never let a listener rest.

const SENTENCE = /[^]*?(?:[.!?](?=\s)|\n)\s*/y;

export class Announcer {
  #region;
  #spoken = 0;

  constructor(region) {
    this.#region = region;
  }

  begin() {
    this.#spoken = 0;
    this.#region.replaceChildren();
  }

  /** Speak the whole sentences of `text` that have not been spoken; at the `end`, the rest too. */
  follow(text, end) {
    for (;;) {
      SENTENCE.lastIndex = this.#spoken;
      const sentence = SENTENCE.exec(text)?.[0];
      if (!sentence) break;
      this.#spoken += sentence.length;
      this.say(sentence);
    }
    if (end) {
      this.say(text.slice(this.#spoken));
      this.#spoken = text.length;
    }
  }

  say(words) {
    if (words.trim()) this.#region.append(Object.assign(document.createElement("p"), { textContent: words.trim() }));
  }
}
