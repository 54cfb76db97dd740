"""What a backend is made for: all that a Plan decides about it."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from strata.records import dataclass

KVTypeName = Literal["f16", "bf16", "q8_0", "int4"]
"""How keys, or values, may be kept; `kv_types.py` has a row for each, and reads names of types that
are made of them."""

EXPERT_DECAY = 0.99
"""What a token's use of an expert is worth after the next token of what it was worth before, where
nobody knows better."""

ActivationsName = Literal["int8", "int16"]
"""What products with integer codes multiply: activations as 8 bits with a scale for each 32, or
also what those leave over, as 8 more."""

ACTIVATIONS: tuple[ActivationsName, ...] = ("int8", "int16")

MAX_TOKENS = 512
"""Tokens of one step: as many rows as activations have memory for."""

MAX_LOGIT_ROWS = 64
"""Rows of logits of one call of the head."""


@dataclass(frozen=True)
class Reading:
    """How files are read: by ``threads`` at a time; what is loaded once, and experts, with reads of
    at most ``request_bytes``.

    ``direct`` reads go past the page cache where the file system can. Buffered ones leave nothing
    in it with ``drop_behind``.
    """

    threads: int = 4
    request_bytes: int = 2 << 20
    direct: bool = False
    drop_behind: bool = False


@dataclass(frozen=True)
class BackendSettings:
    """Sizes of steps, and what streams.

    A step has at most ``max_tokens`` tokens, ``max_logit_rows`` rows of logits at a time, and
    ``parallel`` sequences of ``positions`` positions (which only bounds what is entered in books).
    The matrices of the WeightUnits named in ``streamed`` are not kept: they pass through a ring
    buffer of ``ring_bytes`` in tiles of at most ``tile_bytes``, once in every sweep; rows of tables
    are fetched one by one, and the last ones kept in ``row_cache_bytes``; and experts, those that
    are chosen, into ``expert_slots``, each with room for one of any layer, of which
    ``expert_ahead`` are for those that will probably be, and at most ``expert_sure`` for those that
    the next layer is sure to need; of the others those go that were used least, a use being worth
    ``expert_decay`` of what it was after each sweep. Of keys and values of all positions memory has
    ``kv_slots`` blocks, and a file in ``kv_directory`` the others, which are read while layers
    attend; 0: all are in memory. A backend that streams nothing keeps all. ``activations`` is how
    exactly products take their input, for backends that quantise it.
    """

    max_tokens: int = MAX_TOKENS
    max_logit_rows: int = MAX_LOGIT_ROWS
    parallel: int = 1
    positions: int = 0
    streamed: frozenset[str] = frozenset()
    ring_bytes: int = 0
    tile_bytes: int = 0
    row_cache_bytes: int = 0
    expert_slots: int = 0
    expert_ahead: int = 0
    expert_decay: float = EXPERT_DECAY
    expert_sure: int = 0
    kv_slots: int = 0
    kv_directory: str = ""
    activations: ActivationsName = "int8"
    reading: Reading = field(default_factory=Reading)
