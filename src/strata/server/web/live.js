// Keeps the live picture coming: reconnects when it breaks, and rests while nobody looks.

import { ApiError } from "./api.js";

const SILENCE_MS = 15_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;

/**
 * `on.models(names)`, `on.model(picture)`, `on.state(picture)`,
 * `on.connection("connected" | "unloaded" | "lost" | "locked")`.
 * "unloaded" is a model that is loaded once it is asked, "locked" a key that is missing or wrong:
 * then it rests until `wake()`.
 */
export class Live {
  #api;
  #on;
  #abort = null;
  #timer = 0;
  #wait = FIRST_WAIT_MS;

  constructor(api, on) {
    this.#api = api;
    this.#on = on;
    // A hidden page needs no picture, and browsers have few connections to one server.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#rest();
      else this.wake();
    });
    window.addEventListener("online", () => this.wake());
  }

  /** Connect now unless connected. */
  wake() {
    if (document.hidden || this.#abort !== null) return;
    clearTimeout(this.#timer);
    this.#run();
  }

  /** The picture of another model. */
  restart() {
    this.#rest();
    this.wake();
  }

  #rest() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
  }

  async #run() {
    const abort = new AbortController();
    this.#abort = abort;
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort("silent"), SILENCE_MS);
    };
    let locked = false;
    let unloaded = false;
    try {
      heard();
      this.#on.models(await this.#api.models(abort.signal));
      heard();
      for await (const part of this.#api.live(abort.signal)) {
        heard();
        if (part.event === "model") {
          unloaded = false;
          this.#on.connection("connected");
          this.#on.model(JSON.parse(part.data));
        } else if (part.event === "state") {
          this.#wait = FIRST_WAIT_MS;
          this.#on.state(JSON.parse(part.data));
        } else if (part.comment !== undefined) {
          this.#wait = FIRST_WAIT_MS;
          unloaded = true;
          this.#on.connection("unloaded");
        }
      }
    } catch (error) {
      locked = error instanceof ApiError && error.status === 401;
    } finally {
      clearTimeout(silence);
    }
    // Somebody else's turn already: the page was hidden, and perhaps shown again.
    if (this.#abort !== abort) return;
    this.#abort = null;
    // Such a stream ends when the model is there.
    if (!unloaded || locked) this.#on.connection(locked ? "locked" : "lost");
    if (locked) return;
    this.#timer = setTimeout(() => this.wake(), this.#wait);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
  }
}
