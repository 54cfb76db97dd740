"""Every family that continues texts, of GGUF files and of directories: answers are those of one
request alone with one thread and everything in memory.

Streamed at the least ring, several together of which some give way, with guesses rolled back, in
other pieces and with three threads; with KV on disk and through the store; with what is found in
memory and, after a restart, on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import make_tiny_directories as directories
import make_tiny_hybrids as hybrids
import make_tiny_variants as variants
from strata.backends.base import KV_BLOCK, NoBooks
from strata.backends.cpu.backend import CpuBackend
from strata.backends.settings import BackendSettings, Reading
from strata.backends.weights import WeightSource
from strata.decode import SamplingParams
from strata.engine import Engine, KVSettings, Runner, StoreSettings
from strata.engine.drafting import Drafting
from strata.formats import ModelFile, open_model
from strata.kv.store_directory import StoreDirectory
from strata.models import build_model
from strata.program import Recurrent
from support import latent_models, special_models
from support.company import Answers, guessing, prompts, run
from support.streaming import least_ring, settings, units

pytestmark = pytest.mark.slow

CONTEXT, ROWS, TILE = 128, 48, 4096
PARAMS = SamplingParams(max_tokens=20, logprobs=1, ignore_eos=True)
# They see a whole text, or give what it means.
NOT_CONTINUING = {
    *("dream", "llada", "llada-moe", "rnd1"),
    *("eurobert", "gemma-embedding", "modern-bert"),
}

Write = Callable[[Path, str], Path]
WRITERS: dict[str, tuple[Write, list[str]]] = {
    "variant": (
        lambda path, name: variants.write(path, name, context_length=CONTEXT),
        [name for name in variants.names() if name not in NOT_CONTINUING],
    ),
    "hybrid": (lambda path, name: hybrids.write(path, name), hybrids.names()),
    "special": (
        lambda path, name: special_models.write(path, name),
        sorted(special_models.SPECIAL),
    ),
    "latent": (lambda path, name: latent_models.write(path, architecture=name), ["deepseek2"]),
    "directory": (lambda path, name: directories.write(path, name), sorted(directories.CONFIGS)),
}
CASES = [(kind, name) for kind, (_, names) in WRITERS.items() for name in names]


def answers(engine: Engine, asked: list[list[int]]) -> tuple[Answers, int]:
    """And how many tokens were known."""
    return run(engine, asked, PARAMS)


@contextmanager
def running(file: ModelFile, threads: int, how: BackendSettings) -> Iterator[Runner]:
    backend = CpuBackend.create(threads, None, how, NoBooks())
    runner = Runner(backend, build_model(file, CONTEXT), WeightSource(file))
    backend.prepare()
    yield runner
    backend.close()


def made(runner: Runner, parallel: int, kv: KVSettings, drafting: Drafting | None = None) -> Engine:
    return Engine(
        runner, context=CONTEXT, parallel=parallel, token_budget=ROWS, kv=kv, drafting=drafting
    )


@pytest.mark.parametrize(("kind", "name"), CASES, ids=str)
def test_answers_are_those_alone(kind: str, name: str, tmp_path: Path) -> None:
    with open_model(
        WRITERS[kind][0](tmp_path / ("m" if kind == "directory" else "m.gguf"), name)
    ) as file:
        model = build_model(file, CONTEXT)
        assert model.causal
        asked = prompts(model.vocab_size)
        plain = BackendSettings(max_tokens=ROWS, parallel=4, positions=CONTEXT)
        with running(file, 1, plain) as runner:
            engine = made(runner, 1, KVSettings(prefix_cache=False))
            want = [answers(engine, [prompt])[0][0] for prompt in asked]
        streamed_together(file, asked, want)
        found_again(file, asked, want, tmp_path)


def streamed_together(file: ModelFile, asked: list[list[int]], want: Answers) -> None:
    """Everything streams, with room for little of what is kept, and guesses of which three of four
    are right."""
    how = settings(units(file, CONTEXT), tile=TILE, ring=least_ring(file, TILE, CONTEXT))
    with running(file, 3, how) as runner:
        groups = runner.model.groups
        guesses = guessing(asked, want, runner.model.vocab_size)
        few = KVSettings(blocks=tuple(5 for _ in groups))
        engine = made(runner, 4, few, guesses)
        assert answers(engine, asked)[0] == want
        status = engine.status()
        assert status.draft_tokens > status.draft_tokens_kept
        # Slots of recurrent state run out first, for which others wait.
        if not any(g.recurrent for g in groups) and any(not g.window for g in groups):
            assert status.preemptions > 0
        engine.close()


def found_again(file: ModelFile, asked: list[list[int]], want: Answers, folder: Path) -> None:
    """Most KV that keeps all positions on disk, and a store; what was computed before is known."""
    kept = StoreSettings(StoreDirectory(folder / "kv", 1 << 26), "fa" * 16, lambda: True)
    state = build_model(file, CONTEXT).state
    for threads in (2, 4):
        how = BackendSettings(
            max_tokens=ROWS,
            parallel=2,
            positions=CONTEXT,
            kv_slots=4,
            kv_directory=str(folder),
            reading=Reading(threads=1),
        )
        with running(file, threads, how) as runner:
            engine = made(runner, 2, KVSettings(store=kept))
            found, _ = answers(engine, asked)
            assert found == want
            again, known = answers(engine, asked)
            assert again == want
            assert known >= KV_BLOCK or not state or isinstance(state[-1], Recurrent)
            engine.close()
