"""Measured constants of the memory and cost models: what a header cannot tell.

They were taken with ``bench/fit_cost_model.py`` and by looking at resident memory between the
steps of a start; each says what it counts.
"""

from __future__ import annotations

MB = 10**6

# Memory, in bytes. ------------------------------------------------------------------------------

PROCESS = 48 * MB
"""A process that is about to open a model: Python, numpy, the tokenizers' library, templates, the
command line and our own code. Where the process is there it is measured instead: how much of a
library is mapped is up to the Python, the libraries and the system."""

PROCESS_SLACK = 3 * MB
"""By how much it may be larger before more is reserved for it."""

PROCESS_VARIES = 4 * MB
"""By how much a process and its tokenizer may differ from one start to the next: a budget that is
named to people has so much more, so that it does when they come back with it."""

STARTED = 3_000_000
"""What a run comes to touch of all these beyond that. Not fitted: chosen so that SmolLM2's runs in
budgets of 120 to 190 MB are predicted between their peak and 5 % above."""

SERVER = 42 * MB
"""Libraries of HTTP and metrics, the page, and a queue full of connections and requests."""

REQUESTS = 24 * MB
REQUESTS_LEAST = 8 * MB
"""Requests beside KV: large bodies, and what is made of them until there are tokens; and the least
of it."""

BESIDE_STEPS = 4
BESIDE_SHARE = 1 / 3
"""In how many steps more is set aside for requests, templates and grammars, and the most that it
may be of what a budget has beyond the least one, where that does not hold all weights anyway."""

DRAFTS_SHARE = 0.02
"""What guessing tokens takes at most, as a share of the weights: a sweep over weights that stream
becomes longer by as much, and few guesses that are right make up for it."""

DRAFTED_TOGETHER = 127
"""Tokens guessed in a sweep at most, for all requests together."""

DRAFT_BRANCHES = 1
"""Ways to go on that a request's draft may have beside its first; each takes blocks of KV."""

ROW_CACHE = 32 << 20
"""Bytes of table rows at most that are kept in what nothing else has use for: some ten thousand of
an embedding."""

DRAFT_TEXT_TOKEN = 16
"""Of a text to guess from, for each token: itself and its place in the index
(``csrc/runtime/suffix_index.h``)."""

HISTORY_TOKENS = 1 << 18
HISTORY_SHARE = 64
"""Tokens of earlier texts to guess from: one for so many bytes set aside for guessing, up to some
hundred long conversations."""

THREAD = 128 << 10
"""Stack and bookkeeping of one thread."""

READER = 48 << 10
"""The same of one that only reads."""

SEGMENT = 96 << 10
"""A Segment's Ops, nodes and names."""

SAMPLING_LOGIT = 20
"""Beside a row of logits, for each: float64 copies, order and sums while a token is chosen."""

MARGIN = 2 * MB
MARGIN_SHARE = 0.015
"""What allocators and page tables take beyond what they are asked for."""

PEAK_MARGIN = MB
PEAK_MARGIN_SHARE = 0.01
"""The same for what is predicted, which is to be near."""

KEEP_BACK = 0.08
"""Share of the free memory that is left to others when no budget is given."""

# Sizes that are chosen among. -------------------------------------------------------------------

DEFAULT_CONTEXT = 4096
DEFAULT_KV_SHARE = 0.2
"""Positions unless asked otherwise, as long as their KV takes no more than this of the budget."""

RING_TILES = 15
"""Tiles that the ring buffer has room for: three quarters on their way, the others in use, ready,
and lost where it wraps."""

LEAST_SLOTS = 2
"""Experts that there is room for at least: one is used while the next is read."""

AHEAD_OF = 8
"""Of so many slots for experts at most one is for what is read before it is chosen."""

READERS = 16
"""Threads that read ahead: the more requests a disk has, the better it keeps going. Often a tile
is of several matrices, and so more than one read."""

TILES = tuple(
    sorted([1 << power for power in range(18, 24)] + [3 << power for power in range(17, 22)])
)
"""Bytes of a tile: 256 KiB to 8 MiB."""

READERS_REQUEST = 512 << 10
"""Bytes of the largest read of these while they load what stays."""

LOADING_REQUEST = 1 << 20
"""Bytes of the largest read while a model is loaded that stays in memory."""

MAX_TOKENS = 4096
RESIDENT_TOKENS = 512
"""Tokens of a sweep at most, and of one over weights that are in memory: more would only take
memory for activations there."""

LOGIT_ROWS = 64

# Times, in seconds. -----------------------------------------------------------------------------

NODE = 4e-7
"""Opening and closing one Op's work among the threads."""

STEP = 6e-5
"""A step's work in Python: scheduling, the step's arrays, text."""

SAMPLE = 3e-5
SAMPLE_LOGIT = 1e-9
"""Choosing a token, and for each logit."""

SERVED_TOKEN = 2e-4
"""Telling a client of a token: its text, JSON, a socket."""

ELEMENTWISE_BYTES = 36e9
"""Bytes a second and thread of norms, activations, rotations and the like."""

OPEN = 0.03
OPEN_TOKEN = 1.3e-6
"""Starting up, and building the tokenizer for each token and merge."""

FRESH_BYTES = 2e9
"""Bytes a second of memory that the system hands out for weights that stay."""

READ_GAP = 3e-4
"""From the end of a read until the thread asks for the next one, and the disk has taken it up."""

DISK_SHARE = 0.96
"""Of the probed bandwidth that a sweep keeps up."""

KV_AHEAD = 12 << 20
"""Bytes of a layer's KV on disk that are read before it attends: those of the ring through which
they pass, or a little less (csrc/runtime/kv_tier.cpp)."""

RING_SHARE = 0.45
"""Of the ring buffer that is filled ahead: the rest is in use, or lost where it wraps."""
