"""Records which experts a text chooses, compares policies on it, keeps what a Plan is made by."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

import strata._native as _native
from strata.backends.base import ExpertSlots
from strata.backends.registry import backend_class
from strata.backends.settings import EXPERT_DECAY
from strata.backends.weights import WeightSource
from strata.engine.engine import Engine
from strata.engine.routes import POLICY, known_hits, routes_file
from strata.engine.runtime import Runtime
from strata.errors import UsageError
from strata.plan.expert_policies import DECAYS
from strata.plan.routes import HitCurve, Routes
from strata.records import dataclass

POLICIES = ("recent", "per layer", "static", "mixed", "frequency", "belady")
"""Least recently used; frequency with as many slots for each layer; those used most in the first
half of the text; half of that and frequency; frequency with that of ``DECAYS`` which finds most, as
it runs; and what no policy can be better than."""

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Of all experts, for which there are slots."""

TOGETHER = 16
"""Sequences for which routes are recorded beside those of one."""

_MOST_FILES = 64


@dataclass(frozen=True)
class Comparison:
    """Hit rates of policies with so many slots, on the second half of a text."""

    slots: int
    rates: dict[str, float]


def record(
    runtime: Runtime,
    engine: Engine,
    ids: Sequence[int],
    window: int,
    progress: Callable[[int, int], None] | None = None,
) -> Routes:
    """Run a text in windows behind each other, and write down what its tokens choose.

    UsageError for a model or a backend without experts to record.
    """
    experts, slots = _through_slots(runtime, engine)
    parts: list[list[np.ndarray]] = [[] for _ in experts]
    windows = [ids[i : i + window] for i in range(0, len(ids) - 1, window)]
    windows = [part for part in windows if len(part) > 1]
    for number, part in enumerate(windows):
        if progress is not None:
            progress(number, len(windows))
        slots.record(on=True)
        engine.logprobs(list(part), len(part) - 2)
        for layer, rows, chosen in slots.routes():
            parts[layer].append(np.array(chosen, np.int32).reshape(rows, -1))
    slots.record(on=False)
    if progress is not None:
        progress(len(windows), len(windows))
    layers = [np.concatenate(rows) for rows in parts]
    if len({rows.shape for rows in layers}) != 1:
        raise UsageError("layers of this model choose different numbers of experts")
    return Routes(tuple(experts), np.stack(layers, axis=1))


def apart(ids: Sequence[int], count: int, tokens: int) -> list[int]:
    """``count`` parts of a text behind each other, of ``tokens`` each and evenly far apart in it:
    as many sequences. Recorded with a window of that length each is behind itself alone; tokens
    behind one and the same text choose alike, as those of several sequences do not."""
    starts = [i * (len(ids) - tokens) // max(1, count - 1) for i in range(count)]
    return [token for start in starts for token in ids[start : start + tokens]]


def _through_slots(runtime: Runtime, engine: Engine) -> tuple[list[int], ExpertSlots]:
    """Have all experts go through slots, where choices are seen; how many each layer has."""
    model, before = engine.runner.model, runtime.settings
    kind = backend_class(runtime.options.backend)
    if not kind.plans:
        raise UsageError(f"the {kind.name} backend has no slots of experts; the cpu backend does")
    profile = kind.profile(model, WeightSource(runtime.file))
    routed = [unit for unit in profile.units if unit.experts]
    if not routed:
        raise UsageError(f"{runtime.file.path.name} has no experts: nothing in it is routed")
    held = [unit for unit in routed if unit.name not in before.streamed]
    if held:
        count = sum(unit.packed_bytes for unit in held) // profile.slot_bytes
        if runtime.ledger.budget is not None:
            # Beside what readers take then.
            reading = before.reading.threads * (2 * before.reading.request_bytes)
            count -= -(-reading // profile.slot_bytes)
        settings = replace(
            before,
            streamed=before.streamed | {unit.name for unit in held},
            expert_slots=max(1, before.expert_slots + min(profile.experts, count)),
        )
        engine.rearrange(settings, before)
        runtime.settings = settings
    runtime.backend.prepare()
    slots = runtime.backend.expert_slots()
    assert slots is not None, "experts that stream are in slots"
    return [unit.experts for unit in routed], slots


def compare(routes: Routes, rows: int = 1, shares: Sequence[float] = SHARES) -> list[Comparison]:
    """What each policy finds, for steps of one token of each of ``rows`` sequences."""
    total = sum(routes.experts)

    def found(slots: int, policy: str) -> float:
        decays = DECAYS if policy == "frequency" else (EXPERT_DECAY,)
        return max(hit_rate(routes, slots, policy, rows=rows, decay=d) for d in decays)

    counts = sorted({max(1, round(share * total)) for share in shares})
    return [Comparison(n, {p: found(n, p) for p in POLICIES}) for n in counts]


def hit_rate(
    routes: Routes, slots: int, policy: str, *, rows: int = 1, decay: float = EXPERT_DECAY
) -> float:
    """Of the experts that the second half of the text needs, the share that a policy has there."""
    visits = routes.visits(rows)
    counted = len(visits) // len(routes.experts) // 2 * len(routes.experts)
    uses = routes.uses_of(routes.tokens // 2)
    if policy == "per layer":
        each = slots // len(routes.experts)
        if not each:
            return 0.0
        hits = misses = 0
        for layer, count in enumerate(routes.experts):
            own = [v._replace(layer=0) for v in visits if v.layer == layer]
            h, m = _native.replay_experts([count], own, each, "frequency", len(own) // 2, decay)
            hits, misses = hits + h, misses + m
        return hits / max(1, hits + misses)
    hits, misses = _native.replay_experts(
        list(routes.experts), visits, slots, policy, counted, decay, uses
    )
    return hits / max(1, hits + misses)


def curves(routes: Routes, rows: int = 1) -> tuple[HitCurve, ...]:
    """What a Plan is made by: hit rates of the policy that runs, with each decay, for so many
    sequences, of which each has its part of what was recorded; none where that is too little."""
    total = sum(routes.experts)
    counts = sorted({max(1, round(share * total)) for share in SHARES})
    if routes.tokens < 8 * rows:
        return ()
    out = []
    for decay in DECAYS:
        rates = [hit_rate(routes, n, "frequency", rows=rows, decay=decay) for n in counts]
        points = (*zip(counts, rates, strict=True), (total, 1.0))
        out.append(HitCurve(rows, routes.tokens, points, decay))
    return tuple(out)


def keep(path: Path, routes: Routes, found: Sequence[HitCurve]) -> Path | None:
    """Write curves beside others in Strata's cache, where a Plan looks for them, those of former
    runs for other numbers of rows among them; None where nothing can be kept."""
    target = routes_file(path)
    new = {(curve.rows, curve.decay) for curve in found}
    others = [c for c in known_hits([path]) if (c.rows, c.decay) not in new]
    data = {
        "policy": POLICY,
        "experts": list(routes.experts),
        "curves": [
            {"rows": c.rows, "tokens": c.tokens, "decay": c.decay, "points": c.points}
            for c in (*found, *others)
        ],
    }
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(data), encoding="utf-8")
        os.replace(scratch, target)
        there = sorted(target.parent.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in there[_MOST_FILES:]:
            old.unlink(missing_ok=True)
        return target
    return None
