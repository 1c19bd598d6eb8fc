// What the user has set: vectors, sampling, how a question is asked. One value, and who wants to know of its changes.

export const SIDES = ["steered", "unsteered"];
const FOLLOW_UP_CONTEXT = 1024; // a context this small has no room for earlier turns
const LONGEST_ANSWER = 512;

/** A value with listeners. */
export class Store {
  #listeners = [];

  constructor(value) {
    this.value = value;
  }

  set(changes) {
    this.value = { ...this.value, ...changes };
    for (const listener of this.#listeners) listener(this.value);
  }

  subscribe(listener) {
    this.#listeners.push(listener);
  }
}

/** The settings at the start: what the server says steers a request that says nothing, and its sampling. */
export function initialSettings(server) {
  return {
    vectors: startVectors(server.vectors),
    sampling: sampling(server.sampling),
    system: "",
    followUp: server.context > FOLLOW_UP_CONTEXT,
    againOnMove: false,
  };
}

/** The vectors in use, as a request names them; those of strength 0 are left out. */
export function controlVectors(vectors) {
  return vectors
    .filter((vector) => vector.scale !== 0)
    .map(({ name, scale, layers, phase }) => ({ name, scale, ...(layers ? { layers } : {}), phase }));
}

/** The body of a chat request. */
export function chatBody(model, messages, vectors, sampling) {
  const chosen = Object.entries(sampling).filter(([, value]) => value !== null);
  return { model, messages, ...Object.fromEntries(chosen), control_vectors: vectors };
}

/** A vector as its file is tuned, at strength `scale`. */
export function asTuned(vector, scale = vector.tuned.scale) {
  return { ...vector, scale, layers: spans(vector.tuned.layers), phase: vector.tuned.phase };
}

/** Vectors after a preset: those that it names as it has them, the others off. */
export function withPreset(vectors, steering) {
  return vectors.map((vector) => {
    const named = steering.find((one) => one.name === vector.name);
    return named
      ? { ...vector, scale: named.scale, layers: spans(named.layers), phase: named.phase }
      : { ...vector, scale: 0 };
  });
}

/** [1, 2, 3, 7] as "1-3,7". */
export function spans(layers) {
  const runs = [];
  for (const layer of layers) {
    const last = runs.at(-1);
    if (last && last[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(",");
}

/** What a phase steers, in words. */
export const PHASES = { all: "all tokens", generated: "answer only", delimiter: "blank lines of the answer" };

/** A number without digits that say nothing. */
export function short(number) {
  return String(Number(number.toPrecision(3))).replace("-", "−");
}

export function randomSeed() {
  return Math.floor(Math.random() * 2 ** 31);
}

function startVectors(listed) {
  const vectors = listed.map((vector) => asTuned(vector, vector.scale));
  if (vectors.length && vectors.every((vector) => vector.scale === 0)) vectors[0] = asTuned(vectors[0]);
  return vectors;
}

function sampling(params) {
  return {
    temperature: params.temperature,
    top_k: params.top_k,
    top_p: params.top_p,
    min_p: params.min_p,
    repeat_penalty: params.repeat_penalty,
    max_tokens: params.max_tokens > 0 ? params.max_tokens : LONGEST_ANSWER,
    seed: null,
  };
}
