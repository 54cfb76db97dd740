// The server as this page uses it: a key, chat completions, and the live picture.

import { events } from "./sse.js";

const KEY = "strata.key";

/** The server refused; `status` is the HTTP status, 0 within a stream. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server cannot be reached, or went away in the middle. */
export class ConnectionLost extends Error {
  constructor() {
    super("The connection to the server was lost.");
  }
}

export class Api {
  #key = readKey();
  /** The name of the model that is asked, once known. */
  model = null;

  get hasKey() {
    return this.#key !== null;
  }

  /** Use a key from now on; `remember` keeps it beyond this tab. */
  setKey(key, remember) {
    this.#key = key;
    try {
      sessionStorage.setItem(KEY, key);
      if (remember) localStorage.setItem(KEY, key);
      else localStorage.removeItem(KEY);
    } catch {
      // Without storage the key lasts as long as the page.
    }
  }

  async #fetch(path, body, signal) {
    const headers = {};
    // The bytes of any key must fit a header, which is latin-1.
    if (this.#key) headers["x-api-key"] = String.fromCharCode(...new TextEncoder().encode(this.#key));
    const init = { headers, signal, cache: "no-store", credentials: "omit" };
    if (body !== undefined) {
      init.method = "POST";
      init.body = JSON.stringify(body);
      headers["content-type"] = "application/json";
    }
    let response;
    try {
      response = await fetch(path, init);
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ConnectionLost();
    }
    if (!response.ok) throw new ApiError(response.status, await reason(response));
    return response;
  }

  /** Names of the models that there are, without aliases. */
  async models(signal) {
    const list = await (await this.#fetch("/v1/models", undefined, signal)).json();
    return list.data.filter(({ id, root }) => id === root).map(({ id }) => id);
  }

  /** Events of the live picture of `model` as `{event, data}`, comments as `{comment}`. */
  async *live(signal) {
    const of = this.model === null ? "" : `?model=${encodeURIComponent(this.model)}`;
    yield* this.#stream(await this.#fetch(`/live${of}`, undefined, signal), signal);
  }

  async *#stream(response, signal) {
    try {
      yield* events(response);
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ConnectionLost();
    }
  }

  /**
   * An answer as it comes: `{notice}` with what the server warns of, `{loading}` with words on how far the model is, `{done, total}` while
   * the prompt is read, `{thought}` before the answer, `{text}`, `{finish}` with the reason for its
   * end, `{usage}`.
   */
  async *chat(messages, sampling, signal) {
    const body = {
      model: this.model,
      messages,
      ...sampling,
      // A chat goes on where its context is full, without its oldest turns.
      truncation: "auto",
      stream: true,
      stream_options: { include_usage: true },
    };
    const response = await this.#fetch("/v1/chat/completions", body, signal);
    const notice = response.headers.get("x-strata-warning");
    if (notice) yield { notice };
    for await (const part of this.#stream(response, signal)) {
      if (part.comment !== undefined) {
        const progress = /^prompt (\d+)\/(\d+)$/.exec(part.comment);
        if (progress) yield { done: Number(progress[1]), total: Number(progress[2]) };
        if (part.comment.startsWith("loading ")) yield { loading: part.comment };
        continue;
      }
      if (part.data === "[DONE]") return;
      const chunk = JSON.parse(part.data);
      if (chunk.error) throw new ApiError(0, chunk.error.message);
      const choice = chunk.choices[0];
      if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { finish: choice.finish_reason };
      if (chunk.usage) yield { usage: chunk.usage };
    }
    throw new ConnectionLost();
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

async function reason(response) {
  try {
    const message = (await response.json()).error.message;
    if (typeof message === "string") return message;
  } catch {
    // Not our own error body: its status has to do.
  }
  return `The server answered with status ${response.status}.`;
}
