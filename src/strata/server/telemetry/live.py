"""``GET /live``: a picture of the machine a few times a second, as server-sent events.

The first event, ``model``, is what does not change: names, Segments with their bytes, sizes, and
the ceilings of the machine as measured. The others, ``state``, are what does. What is not known
(yet) is null.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from strata import __version__
from strata.backends.base import KV_BLOCK
from strata.decode import SamplingParams
from strata.engine import EngineStatus
from strata.llm import LLM
from strata.memory import peak_bytes
from strata.records import dataclass
from strata.server.replies import EVENT_STREAM, StreamReply, sse
from strata.server.service import Service
from strata.server.telemetry.forecast import Forecast, forecast

_PARTS = {
    "weights": "weights_bytes",
    "ring": "ring_bytes",
    "experts": "ring_bytes",
    "rows": "ring_bytes",
    "staging": "ring_bytes",
    "kv": "kv",
    "activations": "activations_bytes",
    "logits": "activations_bytes",
    "rope tables": "activations_bytes",
    "sampling": "activations_bytes",
}
"""In which part of the picture an owner of the ledger is shown; the others are with the
interpreter."""


def router(service: Service) -> APIRouter:
    """The endpoint. It never ends, so that it is not in the OpenAPI document."""
    routes = APIRouter()
    expected = forecast(service.llm)

    @routes.get("/live", include_in_schema=False)
    async def live() -> Response:
        return StreamReply(_pictures(service, expected), EVENT_STREAM)

    return routes


async def _pictures(service: Service, expected: Forecast | None) -> AsyncGenerator[str, None]:
    yield sse(_model(service, expected), "model")
    rates = _Rates(service)
    while not service.bridge.closing:
        yield sse(_state(service, expected, rates), "state")
        await asyncio.sleep(service.settings.live_s)


def _sampling(params: SamplingParams) -> dict[str, float]:
    """How tokens are chosen where a caller says nothing, as far as the page has controls for it."""
    return {name: getattr(params, name) for name in ("temperature", "top_p", "top_k", "min_p")}


def _model(service: Service, expected: Forecast | None) -> dict[str, Any]:
    llm = service.llm
    return {
        "name": service.name,
        "sampling": _sampling(llm.sampling_defaults.params),
        "version": __version__,
        "backend": llm.backend,
        "isa": llm.isa,
        "threads": llm.threads,
        "context": llm.context,
        "kv_block_positions": KV_BLOCK,
        "segments": _segments(llm),
        "machine": None if expected is None else asdict(expected.ceilings),
        "alone_tok_s": None if expected is None else expected.alone_tok_s(),
    }


def _segments(llm: LLM) -> list[dict[str, Any]]:
    """Each with its bytes, whether some of them stream, and how many do."""
    names = () if llm.plan is None else llm.plan.streamed
    runner, found = llm.engine.runner, []
    for segment, (name, size) in zip(llm.model.segments, runner.sizes, strict=True):
        streamed = [unit for unit in segment.units if unit.name in names]
        weights = [w for unit in streamed for w in unit.weights]
        nbytes = sum(runner.weight_type(name, w.name).tensor_nbytes(w.shape) for w in weights)
        # A table that counts with the head takes no bytes here.
        found.append(
            {
                "name": name,
                "bytes": size,
                "streamed": bool(streamed),
                "streamed_bytes": min(nbytes, size),
            }
        )
    return found


def _state(service: Service, expected: Forecast | None, rates: _Rates) -> dict[str, Any]:
    llm, status = service.llm, service.bridge.status
    rates.update(running=status.running > 0)
    return {
        "requests": {
            "running": status.running,
            "waiting": max(service.bridge.open - status.running, 0),
        },
        "tiers": [_host(llm, status), _disk(llm, rates)],
        "kv": {"blocks": status.kv_blocks, "free": status.kv_blocks_free},
        "sweep": {
            "segment": llm.engine.runner.segment,
            "count": status.sweeps,
            "seconds": service.metrics.last_step_s,
            "tokens": None if status.last is None else status.last.tokens,
            "tokens_per_sweep": rates.tokens_per_sweep,
        },
        "predicted": {"output_tok_s": _predicted(status, expected)},
        "actual": {"prompt_tok_s": rates.prompt_tok_s, "output_tok_s": rates.output_tok_s},
        "roofline": _roofline(service, rates),
        "totals": {
            "prompt_tokens": service.metrics.prompt_tokens,
            "cached_tokens": service.metrics.cached_tokens,
            "output_tokens": service.metrics.output_tokens,
        },
    }


def _host(llm: LLM, status: EngineStatus) -> dict[str, Any]:
    """Who owns bytes of memory. All of them are taken from the start, whether used yet or not."""
    parts: Counter[str] = Counter()
    for owner, size in llm.ledger.owned.items():
        parts[_PARTS.get(owner, "interpreter_bytes")] += size
    kv_bytes = llm.engine.kv_bytes
    used = status.kv_bytes_used
    return {
        "name": "host",
        "weights_bytes": parts["weights_bytes"],
        "ring_bytes": parts["ring_bytes"] or None,
        "kv_used_bytes": used,
        "kv_free_bytes": kv_bytes - used,
        "activations_bytes": parts["activations_bytes"] or None,
        "interpreter_bytes": parts["interpreter_bytes"] or None,
        "budget_bytes": llm.ledger.budget,
        "peak_bytes": peak_bytes(),
    }


def _disk(llm: LLM, rates: _Rates) -> dict[str, Any]:
    plan = llm.plan
    if plan is None or not plan.streamed:
        return {"name": "disk", "streamed_bytes": None, "read_bytes_per_s": None}
    return {
        "name": "disk",
        "streamed_bytes": plan.predicted.sweep_bytes,
        "read_bytes_per_s": rates.read_bytes_per_s,
    }


def _predicted(status: EngineStatus, expected: Forecast | None) -> float | None:
    """Tokens a second of sweeps like the last one; null at rest and while a prompt is read."""
    if expected is None or status.last is None or not status.running:
        return None
    return expected.output_tok_s(status.last)


def _roofline(service: Service, rates: _Rates) -> dict[str, Any] | None:
    """Where the last sweep lies: FLOPs a byte moved, FLOPs and bytes a second, and how many of the
    bytes came from disk."""
    last, seconds = service.bridge.status.last, service.metrics.last_step_s
    if last is None or not seconds:
        return None
    cost = service.llm.engine.runner.cost(last)
    return {
        "flops_per_byte": cost.flops / max(cost.bytes, 1),
        "flops_per_s": cost.flops / seconds,
        "bytes_per_s": cost.bytes / seconds,
        "disk_bytes_per_s": rates.read_bytes_per_s or None,
    }


@dataclass
class _Mark:
    busy_s: float
    sweeps: int
    tokens: int
    output: int
    read: int


class _Rates:
    """Speeds while sweeping, over the last second or at least one sweep; null at rest."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._marks = [self._mark()]
        self.tokens_per_sweep: float | None = None
        self.prompt_tok_s: float | None = None
        self.output_tok_s: float | None = None
        self.read_bytes_per_s: float | None = None

    def _mark(self) -> _Mark:
        status, metrics = self._service.bridge.status, self._service.metrics
        sweeps = self._service.llm.engine.runner.sweeps
        read = sweeps.prefill.streamed.from_disk + sweeps.decode.streamed.from_disk
        return _Mark(metrics.busy_s, status.sweeps, status.tokens, metrics.output_tokens, read)

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
            self.tokens_per_sweep = self.prompt_tok_s = None
            self.output_tok_s = self.read_bytes_per_s = None
            return
        output = now.output - then.output
        self.tokens_per_sweep = (now.tokens - then.tokens) / sweeps
        self.output_tok_s = output / seconds
        self.read_bytes_per_s = (now.read - then.read) / seconds
        # Every token of an answer but the last was computed too.
        self.prompt_tok_s = max(now.tokens - then.tokens - output, 0) / seconds
