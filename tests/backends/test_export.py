"""A model may be cut at the border of any two Segments: what goes over it are plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata.backends.base import Activations, Backend
from strata.backends.cpu.backend import CpuBackend
from strata.backends.null import NullBackend
from strata.backends.reference import ReferenceBackend
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import open_model
from strata.models import build_model
from support.copying_backend import CopyingBackend
from support.forward import Forward, step

BACKENDS: dict[str, Callable[[], Backend]] = {
    "cpu": lambda: CpuBackend(threads=2),
    "reference": ReferenceBackend,
    "copying": lambda: CopyingBackend(CpuBackend(threads=1)),
}


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_two_backends_of_a_kind_have_the_bits_of_one(name: str, first: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        model, source = build_model(file, golden.context), WeightSource(file)
        expected = Forward(file, golden.context, BACKENDS[first]()).logits(golden.tokens)
        part = step(golden.tokens, groups=len(model.groups))
        for cut in range(1, len(model.segments)):
            values: Activations = {}
            arrays: dict[str, np.ndarray] = {}
            for segments in (model.segments[:cut], model.segments[cut:]):
                backend = BACKENDS[first]()
                state = backend.state_cache(model.state, (1,) * len(model.groups))
                loaded = backend.load(segments, source)
                backend.prepare()
                values = backend.import_(arrays, part) if arrays else {}
                for segment in loaded:
                    values = backend.run(segment, part, state, values)
                arrays = backend.export(values, segments[-1].outputs)
                backend.close()
            assert arrays["logits"].dtype == np.float32
            assert arrays["logits"].tobytes() == expected.tobytes()


def test_what_was_exported_stays(smollm2_path: Path) -> None:
    with open_model(smollm2_path) as file:
        run = Forward(file, 64, CpuBackend(threads=2))
        state = run.backend.state_cache(run.model.state, (1,) * len(run.model.groups))
        part = step([5, 6, 7])
        values = run.backend.run(run.segments[0], part, state, {})
        before = run.backend.export(values, ("x",))["x"]
        assert before.shape == (3, run.model.width)
        kept = before.copy()
        run.backend.run(run.segments[1], part, state, values)
        assert np.array_equal(before, kept)
        null = NullBackend()
        zeros = null.run(null.load(run.model.segments[:1], WeightSource(file))[0], part, state, {})
        assert null.export(zeros, ("x",))["x"].shape == before.shape


def test_only_the_hidden_state_of_the_step_goes_in(smollm2_path: Path) -> None:
    with open_model(smollm2_path) as file:
        run = Forward(file, 64, CpuBackend(threads=1))
        x = np.zeros((2, run.model.width), np.float32)
        for arrays in ({}, {"x": x}, {"x": x[0]}, {"x": x, "y": x}):
            with pytest.raises(UsageError, match="one hidden state of 3 rows"):
                run.backend.import_(arrays, step([1, 2, 3]))
