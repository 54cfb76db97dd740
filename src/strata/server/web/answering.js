// One answer being given: asks the server, grows the node, and measures what comes.

import { ApiError, ConnectionLost } from "./api.js";

/**
 * Grow `node`, an answer to `messages`, until it ends or `signal` stops it. `on.change()` follows
 * every piece, `on.progress(done, total)` the reading of the prompt, `on.loading(words)` what is
 * said of a model that is not there yet. Sets `node.end`:
 * `{kind: "done" | "length" | "stopped" | "lost" | "refused", message?, status?}`.
 */
export async function answer(api, messages, sampling, node, signal, on) {
  const clock = new Clock();
  let finish = null;
  try {
    for await (const part of api.chat(messages, sampling, signal)) {
      if (part.text !== undefined || part.thought !== undefined) {
        node.text += part.text ?? "";
        if (part.thought !== undefined) node.thought = (node.thought ?? "") + part.thought;
        clock.piece();
        node.stats = clock.stats();
        on.change();
      } else if (part.notice !== undefined) {
        node.notice = part.notice;
      } else if (part.loading !== undefined) {
        on.loading(part.loading);
      } else if (part.total !== undefined) {
        on.progress(part.done, part.total);
      } else if (part.finish !== undefined) {
        finish = part.finish;
      } else if (part.usage !== undefined) {
        node.stats = clock.stats(part.usage);
      }
    }
    node.end = { kind: finish === "length" ? "length" : "done" };
  } catch (error) {
    node.end = reason(error, signal);
  }
}

function reason(error, signal) {
  if (signal.aborted) return { kind: "stopped" };
  if (error instanceof ConnectionLost) return { kind: "lost", message: error.message };
  if (error instanceof ApiError) {
    return { kind: "refused", message: error.message, status: error.status };
  }
  throw error;
}

/** Times of an answer as seen from here, the network included. */
class Clock {
  #start = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  piece() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
  }

  /**
   * `ttft` in seconds; `tokens` counts pieces until the server's own count is known, which `exact`
   * tells; `rate` is tokens a second after the first.
   */
  stats(usage = null) {
    const tokens = usage?.completion_tokens ?? this.#pieces;
    const seconds = this.#first === null ? 0 : (this.#last - this.#first) / 1000;
    return {
      ttft: this.#first === null ? null : (this.#first - this.#start) / 1000,
      tokens,
      exact: usage !== null,
      rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      prompt: usage?.prompt_tokens ?? null,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? null,
    };
  }
}
