"""What an engine holds and has done, as numbers that may be handed to other threads."""

from __future__ import annotations

from strata.program import StepSize
from strata.records import dataclass


@dataclass(frozen=True)
class EngineStatus:
    """Requests that wait and that run; KV blocks in all and free; steps (sweeps over the weights)
    and the tokens they computed since the start; and the size of the last one.

    ``kv_blocks_cached`` of the free blocks hold prefixes that can be found again, or are being
    written to the store, until their place is needed. Of the prompts that were let in,
    ``prefix_hit_tokens`` were found so and ``prefix_miss_tokens`` were not. ``preemptions`` counts
    how often a request gave up its blocks. Of ``draft_tokens`` guessed ahead in ``drafts``
    ``draft_tokens_kept`` were right, which saved ``draft_saved_s`` seconds by what steps take with
    and without. Blocks are those of all groups; ``kv_bytes_used`` are the bytes that requests hold.
    """

    waiting: int
    running: int
    kv_blocks: int
    kv_blocks_free: int
    sweeps: int
    tokens: int
    last: StepSize | None
    kv_blocks_cached: int = 0
    prefix_hit_tokens: int = 0
    prefix_miss_tokens: int = 0
    preemptions: int = 0
    kv_bytes_used: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    draft_tokens_kept: int = 0
    draft_saved_s: float = 0.0

    @property
    def kv_blocks_used(self) -> int:
        """Blocks that requests hold."""
        return self.kv_blocks - self.kv_blocks_free
