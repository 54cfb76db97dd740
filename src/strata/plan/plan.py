"""The Plan: everything that is decided about a run before a byte is read. Pure data.

The planner makes it, the runtime executes it as it stands, and reports compare it with what
happened. All sizes are bytes, all times seconds, all rates per second.
"""

from __future__ import annotations

from typing import Literal

from strata.backends.settings import ActivationsName
from strata.machine.machine import ReadMode
from strata.records import dataclass

Bound = Literal["disk", "memory", "compute"]

FORMAT_VERSION = 12


@dataclass(frozen=True)
class Limits:
    """What the user allows and wants. ``memory`` None: what the machine and its cgroups leave; of
    more than is ``there`` (None: nobody looked) that is planned with. ``kv_type`` is wanted and
    never chosen, because the answer depends on it. ``kv_bytes`` bounds the KV of all requests
    together; None leaves each room for a whole context. ``process_bytes`` is what the process takes
    that will run the Plan, before it opens the model; None for a usual one. ``slowdown`` bounds how
    many times as long a sweep may take because a prompt comes in beside answers; None for no
    bound. ``kv_disk`` lets KV be on disk: True where that is faster, None where a context has no
    room otherwise, False never. ``experts_ahead`` slots at most are kept for experts that will
    probably be chosen. ``kv_window`` and ``kv_read`` are what the Model was made with."""

    memory: int | None = None
    threads: int | None = None
    kv_type: str = "f16"
    kv_bytes: int | None = None
    slowdown: float | None = None
    process_bytes: int | None = None
    there: int | None = None
    kv_disk: bool | None = None
    experts_ahead: int = 0
    kv_window: str = ""
    kv_read: int = 0

    @property
    def budget(self) -> int | None:
        """What is planned with."""
        if self.memory is None or self.there is None:
            return self.memory
        return min(self.memory, self.there)


@dataclass(frozen=True)
class Workload:
    """What is to be done: ``concurrency`` requests together, each with a prompt and an answer.

    ``context`` is the positions a request may come to use, prompt and answer together; None leaves
    it to the planner. ``logit_rows`` is how many rows of logits of one sequence are wanted at a
    time: more than one where a text is scored. ``serving`` says that they come over HTTP.
    ``text_bytes`` are held by who asks, for ids of a text and what comes of them. ``draft_tokens``
    is how many tokens may be guessed ahead of a request, 0 where nothing is; a model that guesses
    them takes ``draft_model_bytes``.
    """

    prompt_tokens: int = 512
    concurrency: int = 1
    context: int | None = None
    answer_tokens: int = 256
    logit_rows: int = 1
    serving: bool = False
    text_bytes: int = 0
    draft_tokens: int = 0
    draft_model_bytes: int = 0


@dataclass(frozen=True)
class Choice:
    """One decision: its name, its value as people read it, and one line that says why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class MemoryShares:
    """Who owns how many bytes at most: what is reserved, and held under the budget.

    ``resident`` are the weights that stay: matrices of resident units, and all vectors (norms,
    biases). ``ring`` and ``staging`` serve the streamed ones: tiles ready for the
    kernels, and bytes as the file has them on the way there; ``experts`` are the slots of those
    that are read when they are chosen, and ``rows`` those of tables that were looked up last.
    ``server`` is what answering over HTTP
    takes: its libraries, connections and requests; ``guard`` what processes for templates and
    grammars may; ``drafts`` what guessing tokens takes. ``margin`` is owned by nobody: what
    allocators and the system take beyond what was asked for.
    """

    interpreter: int
    tokenizer: int
    resident: int
    ring: int
    staging: int
    kv: int
    activations: int
    logits: int
    margin: int
    server: int = 0
    guard: int = 0
    experts: int = 0
    drafts: int = 0
    rows: int = 0

    @property
    def total(self) -> int:
        """All of them, page cache that the process causes included."""
        return (
            self.interpreter
            + self.tokenizer
            + self.resident
            + self.ring
            + self.staging
            + self.kv
            + self.activations
            + self.logits
            + self.margin
            + self.server
            + self.guard
            + self.experts
            + self.drafts
            + self.rows
        )


@dataclass(frozen=True)
class Prediction:
    """What the cost model expects of a Plan.

    ``memory`` is reserved; the process is at most ``peak_bytes`` large while it does the workload
    once, which touches only part of what is reserved for a longer context.
    ``load_s`` ends when the first sweep may begin; ``ttft_s`` is from there until ``concurrency``
    prompts of ``prompt_tokens`` that came together have their first tokens; ``decode_tok_s`` counts
    the tokens of all of them while the answers are half written. ``expert_hit_rate`` is the share
    of experts needed by a sweep of a decode that are found in a slot: by what was recorded of
    the file's routes, else if routers choose all alike. ``sweep_bytes`` are read from the
    disk in each sweep of a decode, and ``kv_read_bytes`` of KV, which takes ``sweep_read_s`` of
    reading and ``sweep_compute_s`` of work, overlapped; ``bound`` says what decides.
    Where tokens are guessed ahead, ``rows_s`` are the seconds of sweeps of 1, 2, 4, 8 and so many
    rows that all want logits.
    """

    memory: MemoryShares
    peak_bytes: int
    load_s: float
    prompt_tokens: int
    ttft_s: float
    concurrency: int
    decode_tok_s: float
    sweep_bytes: int
    sweep_read_s: float
    sweep_compute_s: float
    bound: Bound
    expert_hit_rate: float = 0.0
    kv_read_bytes: int = 0
    rows_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a model will be run.

    Weights. The matrices of the WeightUnits named in ``resident`` (``layer.7.attention``) are
    loaded once and stay. Those named in ``streamed`` are read in every sweep, in the order of their
    use, as a linear sequence of *tiles*: a tile is a run of whole 16-row panels of matrices of one
    product and takes at most ``tile_bytes`` of a ring buffer of ``ring_bytes`` (a matrix may be cut
    anywhere between panels), where it is read to and kept until its product has run. ``io_threads``
    threads read ahead in ``read_mode``, each one matrix's part of a tile at a time; what loading
    and they need beside the ring buffer never exceeds ``predicted.memory.staging``. What stays is
    loaded by as many threads, with reads of ``request_bytes``. Vectors (norms, biases) always stay.
    Of tables in ``streamed`` the rows of the step's tokens are fetched, of which the last ones are
    kept in ``row_cache_bytes``, and of experts in it those
    that are chosen, by the same threads with reads of ``request_bytes``, into ``expert_slots``,
    each with room for one of any layer, of which ``expert_ahead`` are for those that will probably
    be chosen, and at most ``expert_sure`` for those that the next layer is sure to need; a use of
    the others is worth ``expert_decay`` of what it was after each token, and those give way whose
    uses are worth least. Where nothing goes through it ``ring_bytes`` is 0.

    Steps. A sweep takes at most ``max_tokens`` tokens and the head gives ``logit_rows`` rows at a
    time. ``parallel`` sequences of ``context`` positions run together; ``kv_blocks`` are the blocks
    of each group of their state, with keys and values of ``kv_type``; ``kv_slots`` of the first
    group's are in memory and the others in a file, or all in memory where that is 0. Layers that
    would see all positions have a window as ``kv_window`` says where that is not empty, or read
    ``kv_read`` positions where that is not 0. Of prompts a
    sweep takes at most ``prefill_budget`` tokens beside 1 sequence that decodes, beside 2, beside 4
    and so on, as much again for each further prompt; as many as there is room for where that is
    empty. Products take activations as ``activations`` says.

    Guesses. At most ``draft_tokens`` are guessed ahead in a sweep, all requests together, and none
    where that is 0; ``history_tokens`` of earlier texts are kept to guess from.

    Beside tokens. So many ``grammars`` may be in use at once, and none is compiled where that is 0;
    a guarded process for a template may take ``template_bytes`` for a short conversation (0 where
    none is needed), and requests over HTTP ``admitted_bytes`` beside KV, all together (0 where
    there are none).

    ``budget`` is what ``predicted.memory.total`` was held under.
    """

    model: str
    budget: int
    resident: tuple[str, ...]
    streamed: tuple[str, ...]
    ring_bytes: int
    tile_bytes: int
    row_cache_bytes: int
    expert_slots: int
    expert_ahead: int
    expert_decay: float
    expert_sure: int
    read_mode: ReadMode
    request_bytes: int
    io_threads: int
    max_tokens: int
    logit_rows: int
    kv_blocks: tuple[int, ...]
    kv_slots: int
    prefill_budget: tuple[int, ...]
    draft_tokens: int
    history_tokens: int
    kv_type: str
    kv_window: str
    kv_read: int
    activations: ActivationsName
    context: int
    parallel: int
    grammars: int
    template_bytes: int
    admitted_bytes: int
    threads: int
    isa: str
    choices: tuple[Choice, ...]
    predicted: Prediction
    version: int = FORMAT_VERSION
