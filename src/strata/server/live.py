"""``GET /live``: a picture of the machine a few times a second, as server-sent events.

The first event, ``model``, is what does not change: names, Segments with their bytes, sizes. The
others, ``state``, are what does. What is not known (yet) is null.

Of the model's event, ``machine`` is ``{memory_bytes_per_s, disk_bytes_per_s, ops_per_s}`` as
measured here, ``predicted`` is ``{output_tok_s, concurrency}``. The tier ``host`` may also have
``ring_bytes`` (weights streaming through) and ``activations_bytes``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from strata import __version__
from strata.backends.base import KV_BLOCK
from strata.memory import peak_bytes
from strata.server.replies import EVENT_STREAM, StreamReply, sse
from strata.server.service import Service


def router(service: Service) -> APIRouter:
    """The endpoint. It never ends, so that it is not in the OpenAPI document."""
    routes = APIRouter()

    @routes.get("/live", include_in_schema=False)
    async def live() -> Response:
        return StreamReply(_pictures(service), EVENT_STREAM)

    return routes


async def _pictures(service: Service) -> AsyncGenerator[str, None]:
    yield sse(_model(service), "model")
    rates = _Rates(service)
    while not service.bridge.closing:
        yield sse(_state(service, rates), "state")
        await asyncio.sleep(service.settings.live_s)


def _model(service: Service) -> dict[str, Any]:
    llm = service.llm
    runner = llm.engine.runner
    return {
        "name": service.name,
        "version": __version__,
        "backend": llm.backend,
        "isa": llm.isa,
        "threads": llm.threads,
        "context": llm.context,
        "kv_block_positions": KV_BLOCK,
        "segments": [
            {"name": name, "bytes": size, "streamed": None} for name, size in runner.sizes
        ],
        "machine": None,
        "predicted": None,
    }


def _state(service: Service, rates: _Rates) -> dict[str, Any]:
    llm, status = service.llm, service.bridge.status
    engine = llm.engine
    used = status.kv_blocks - status.kv_blocks_free
    block_bytes = engine.kv_bytes // max(status.kv_blocks, 1)
    rates.update(running=status.running > 0)
    return {
        "requests": {
            "running": status.running,
            "waiting": max(service.bridge.open - status.running, 0),
        },
        "tiers": [
            {
                "name": "host",
                "weights_bytes": engine.runner.nbytes,
                "kv_used_bytes": used * block_bytes,
                "kv_free_bytes": status.kv_blocks_free * block_bytes,
                "budget_bytes": None,
                "peak_bytes": peak_bytes(),
            },
            {"name": "disk", "streamed_bytes": None, "read_bytes_per_s": None},
        ],
        "kv": {"blocks": status.kv_blocks, "free": status.kv_blocks_free},
        "sweep": {
            "segment": engine.runner.segment,
            "count": status.sweeps,
            "seconds": service.metrics.last_step_s,
            "tokens": None if status.last is None else status.last.tokens,
            "tokens_per_sweep": rates.tokens_per_sweep,
        },
        "actual": {"prompt_tok_s": rates.prompt_tok_s, "output_tok_s": rates.output_tok_s},
        "roofline": _roofline(service),
        "totals": {
            "prompt_tokens": service.metrics.prompt_tokens,
            "cached_tokens": service.metrics.cached_tokens,
            "output_tokens": service.metrics.output_tokens,
        },
    }


def _roofline(service: Service) -> dict[str, Any] | None:
    """Where the last sweep lies: FLOPs a byte moved, and FLOPs and bytes a second."""
    last, seconds = service.bridge.status.last, service.metrics.last_step_s
    if last is None or not seconds:
        return None
    cost = service.llm.engine.runner.cost(last)
    return {
        "flops_per_byte": cost.flops / max(cost.bytes, 1),
        "flops_per_s": cost.flops / seconds,
        "bytes_per_s": cost.bytes / seconds,
    }


@dataclass
class _Mark:
    busy_s: float
    sweeps: int
    tokens: int
    output: int


class _Rates:
    """Speeds while sweeping, over the last second or at least one sweep; null at rest."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._marks = [self._mark()]
        self.tokens_per_sweep: float | None = None
        self.prompt_tok_s: float | None = None
        self.output_tok_s: float | None = None

    def _mark(self) -> _Mark:
        status, metrics = self._service.bridge.status, self._service.metrics
        return _Mark(metrics.busy_s, status.sweeps, status.tokens, metrics.output_tokens)

    def update(self, *, running: bool) -> None:
        """Compare with a second ago. A sweep that takes longer leaves the speeds as they are."""
        now = self._mark()
        if not running:
            self._marks = [now]
        elif now.sweeps > self._marks[-1].sweeps:
            self._marks = [*self._marks[-round(1 / self._service.settings.live_s) :], now]
        then, now = self._marks[0], self._marks[-1]
        seconds, sweeps = now.busy_s - then.busy_s, now.sweeps - then.sweeps
        if not sweeps or seconds <= 0:
            self.tokens_per_sweep = self.prompt_tok_s = self.output_tok_s = None
            return
        output = now.output - then.output
        self.tokens_per_sweep = (now.tokens - then.tokens) / sweeps
        self.output_tok_s = output / seconds
        # Every token of an answer but the last was computed too.
        self.prompt_tok_s = max(now.tokens - then.tokens - output, 0) / seconds
