"""Machines as files describe them, and models as headers describe them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from strata.backends.cpu.backend import CpuBackend
from strata.backends.weights import WeightSource
from strata.machine.probe import load_machine
from strata.models import build_model
from strata.plan import Machine, Outline
from strata.plan.outline import outline
from strata.synth import SHAPES, describe

MACHINES = Path(__file__).parent / "machines"


@cache
def machine(name: str) -> Machine:
    """A machine by the name of its file."""
    return load_machine(MACHINES / f"{name}.json")


@cache
def model(shape: str, recipe: str | None = "Q4_K_M") -> Outline:
    """A model by its shape and quantisation."""
    file = describe(SHAPES[shape], recipe)
    built = build_model(file)
    return outline(shape, built, file, CpuBackend.profile(built, WeightSource(file)))
