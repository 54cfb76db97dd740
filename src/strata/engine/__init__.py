"""Advancing requests by tokens: what runs next, running it, and what comes out."""

from __future__ import annotations

from strata.engine.driver import Driver, Job, Run, Turn
from strata.engine.engine import ContextExceeded, Engine, EngineError, QueueFull
from strata.engine.kv_settings import KVSettings, StoreSettings
from strata.engine.request import Delta, Request, Timings
from strata.engine.runner import LoadProgress, Runner
from strata.engine.status import EngineStatus

__all__ = [
    "ContextExceeded",
    "Delta",
    "Driver",
    "Engine",
    "EngineError",
    "EngineStatus",
    "Job",
    "KVSettings",
    "LoadProgress",
    "QueueFull",
    "Request",
    "Run",
    "Runner",
    "StoreSettings",
    "Timings",
    "Turn",
]
