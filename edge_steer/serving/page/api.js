// The server's endpoints: JSON, and answers as they come. What goes wrong is one readable line.

const KEY = "edge-steer key";

/** Something the server or the network refused; `message` is for people. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

export async function getJson(path) {
  return (await send(path, { headers: headers() })).json();
}

export async function postJson(path, body, signal) {
  return (await post(path, body, signal)).json();
}

/** The chunks of a streamed chat answer. Errors: Refusal; AbortError when `signal` stops it. */
export async function* streamChat(body, signal) {
  const extra = { stream: true, logprobs: true, top_logprobs: 0 };
  const response = await post("v1/chat/completions", { ...body, ...extra }, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.message, chunk.error.code);
    yield chunk;
  }
  throw new Refusal("The answer broke off: the server closed the connection.");
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The answer broke off: the connection to the server is lost.");
  }
}

function post(path, body, signal) {
  return send(path, {
    method: "POST",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new Refusal(await reason(response), response.status);
  return response;
}

async function reason(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error?.message;
  return message ? message[0].toUpperCase() + message.slice(1) : `The server says ${response.status}.`;
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}
