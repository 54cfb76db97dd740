"""What an engine holds and has done, as numbers that may be handed to other threads."""

from __future__ import annotations

from dataclasses import dataclass

from strata.program import Workload


@dataclass(frozen=True)
class EngineStatus:
    """Requests that wait and that run; KV blocks in all and free; steps (sweeps over the weights)
    and the tokens they computed since the start; and the size of the last one."""

    waiting: int
    running: int
    kv_blocks: int
    kv_blocks_free: int
    sweeps: int
    tokens: int
    last: Workload | None
