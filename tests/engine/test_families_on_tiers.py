"""A hybrid, a windowed, a latent-attention model and one that chooses keys, through KV on disk and
through the store: the bits of answers are those of memory alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import make_tiny_hybrids
import make_tiny_models
from strata import SamplingParams
from strata.backends.base import KV_BLOCK, NoBooks
from strata.backends.cpu.backend import CpuBackend
from strata.backends.settings import BackendSettings, Reading
from strata.backends.weights import WeightSource
from strata.decode import Sample
from strata.engine import Engine, Runner
from strata.engine.kv_settings import KVSettings, StoreSettings
from strata.formats import open_model
from strata.kv.store_directory import StoreDirectory
from strata.models import build_model
from support import special_models

CONTEXT, PARALLEL, ROWS = 256, 4, 40
# As many as a step of so many rows of all sequences may write.
SLOTS = PARALLEL + 2
PARAMS = SamplingParams(max_tokens=6, logprobs=2, ignore_eos=True)


def write(name: str, folder: Path) -> tuple[Path, int]:
    if name == "kimi-linear":
        path = make_tiny_hybrids.write(folder / "m.gguf", name, "llama")
        return path, make_tiny_hybrids.VOCABULARY
    if name == "glm-dsa":
        path = special_models.write(folder / "m.gguf", name, context_length=CONTEXT)
        return path, special_models.VOCABULARY
    return make_tiny_models.write_directory(folder / "m", make_tiny_models.golden(name)), 250


def prompts(vocabulary: int) -> list[list[int]]:
    """Of up to four blocks; two begin alike."""
    random = np.random.default_rng(4)
    out = [random.integers(0, vocabulary, n).tolist() for n in (240, 150, 201, 90)]
    return [*out, out[0][:170] + out[1][:60]]


@contextmanager
def engine(path: Path, kv: KVSettings, directory: Path | None, parallel: int) -> Iterator[Engine]:
    """With ``directory`` most KV that keeps all positions is there."""
    settings = BackendSettings(
        max_tokens=ROWS,
        parallel=parallel,
        positions=CONTEXT,
        kv_slots=SLOTS if directory else 0,
        kv_directory=str(directory or ""),
        reading=Reading(threads=2),
    )
    with open_model(path) as file:
        backend = CpuBackend.create(2, None, settings, NoBooks())
        runner = Runner(backend, build_model(file, CONTEXT), WeightSource(file))
        backend.prepare()
        made = Engine(runner, context=CONTEXT, parallel=parallel, token_budget=ROWS, kv=kv)
        try:
            yield made
        finally:
            made.close()
            backend.close()


def answers(e: Engine, asked: list[list[int]]) -> tuple[list[list[Sample]], int]:
    """And how many tokens were known."""
    requests = [e.submit(prompt, PARAMS) for prompt in asked]
    while e.busy:
        e.step()
        e.check_integrity()
    return [r.output for r in requests], sum(r.cached_tokens for r in requests)


# Windows and full attention; recurrences and full attention; recurrences and latent attention; keys
# that are chosen, of which those that choose are in memory.
@pytest.mark.parametrize("name", ["gemma3", "qwen35", "kimi-linear", "glm-dsa"])
def test_bits_are_those_of_memory_alone(name: str, tmp_path: Path) -> None:
    path, vocabulary = write(name, tmp_path)
    asked = prompts(vocabulary)
    want = []
    with engine(path, KVSettings(prefix_cache=False), None, 1) as e:
        for prompt in asked:
            (one,), _ = answers(e, [prompt])
            want.append(one)
    store = StoreSettings(StoreDirectory(tmp_path / "kv", 1 << 30), name, lambda: True)
    for restarted in (False, True):
        with engine(path, KVSettings(store=store), tmp_path, PARALLEL) as e:
            got, known = answers(e, asked)
            state = e._memory.state.native  # type: ignore[attr-defined]
            assert state.read_bytes > 0
        assert got == want
        if restarted:
            assert known >= 3 * KV_BLOCK
