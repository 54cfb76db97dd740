"""Files that fail while weights are streamed: one clear error at once, no wrong token, no hang."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.backends.weights import WeightReadError
from strata.formats import ModelFile, open_model
from strata.memory import process_memory
from support.forward import Forward
from support.streaming import faults, forward, logits, settings, units

TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 10)]


@pytest.fixture
def path(smollm2_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(smollm2_path, tmp_path / "model.gguf"))


@pytest.fixture
def model(path: Path) -> Iterator[ModelFile]:
    with open_model(path) as file:
        yield file


@pytest.fixture(scope="module")
def want(smollm2_path: Path) -> NDArray[np.float32]:
    """Logits of weights that are all in memory."""
    with open_model(smollm2_path) as file:
        return logits(file, None, TOKENS)


def streaming(model: ModelFile, *, direct: bool = False) -> Forward:
    how = settings(
        units(model), ring=2 << 20, tile=1 << 19, request=1 << 18, direct=direct, threads=3
    )
    return forward(model, how)


def fails(run: Forward, match: str) -> None:
    with pytest.raises(WeightReadError, match=match) as caught:
        run.logits(TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [60, 300])
@pytest.mark.parametrize("direct", [False, True])
def test_a_read_error(model: ModelFile, at: int, direct: bool, want: NDArray[np.float32]) -> None:
    run = streaming(model, direct=direct)
    with faults(fail_at=at):
        fails(run, r"model\.gguf cannot be read at byte \d+: Input/output error")
    # The disk came round: so does the next sweep, on the same object.
    assert run.logits(TOKENS).tobytes() == want.tobytes()


@pytest.mark.parametrize("at", [70, 333])
def test_a_short_read(model: ModelFile, at: int) -> None:
    run = streaming(model)
    with faults(cut_at=at):
        fails(run, r"model\.gguf ends at byte \d+, but \d+ more were there")


def test_what_failed_before_it_was_wanted_is_read_again(
    model: ModelFile, want: NDArray[np.float32]
) -> None:
    run = streaming(model)
    with faults(fail_at=2):
        run.backend.prepare()
        time.sleep(0.2)
    assert run.logits(TOKENS).tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", ["fail_at", "cut_at", "die_at"])
def test_a_fault_while_loading(model: ModelFile, kind: str) -> None:
    with faults(**{kind: 3}), pytest.raises((WeightReadError, MemoryError)):
        logits(model, settings([], request=1 << 16), TOKENS)
    logits(model, settings([], request=1 << 16), TOKENS)


def test_threads_that_die(model: ModelFile, want: NDArray[np.float32]) -> None:
    run = streaming(model)
    for left in (2, 1, 0):
        with faults(die_at=100):
            fails(run, "a thread that read weights ended")
        if left:
            assert run.logits(TOKENS).tobytes() == want.tobytes()
    fails(run, "no thread that reads weights is left")


@pytest.mark.parametrize("direct", [False, True])
def test_a_file_that_is_cut(model: ModelFile, path: Path, direct: bool) -> None:
    run = streaming(model, direct=direct)
    run.logits(TOKENS)
    os.truncate(path, path.stat().st_size // 2)
    fails(run, "ends at byte|was changed or replaced")


def test_a_file_that_is_written_to(model: ModelFile, path: Path) -> None:
    run = streaming(model)
    run.logits(TOKENS)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 4096)
    fails(run, "was changed or replaced")


def test_a_file_that_is_replaced(model: ModelFile, path: Path, smollm2_path: Path) -> None:
    run = streaming(model)
    run.logits(TOKENS)
    other = shutil.copyfile(smollm2_path, path.with_name("other.gguf"))
    os.replace(other, path)
    fails(run, "was changed or replaced")


def test_a_file_that_changed_between_header_and_weights(path: Path) -> None:
    with open_model(path) as file:
        with path.open("r+b") as writer:
            writer.seek(-1, os.SEEK_END)
            writer.write(b"\1")
        with pytest.raises(WeightReadError, match="was changed or replaced"):
            logits(file, None, TOKENS)


def test_a_deleted_file_is_still_whole(
    model: ModelFile, path: Path, want: NDArray[np.float32]
) -> None:
    run = streaming(model)
    path.unlink()
    assert run.logits(TOKENS).tobytes() == want.tobytes()


def test_an_interrupt_in_the_middle_of_a_sweep(model: ModelFile, want: NDArray[np.float32]) -> None:
    run = streaming(model)
    # Some 390 reads by 3 threads, 50 ms each on average: without an end it takes 6 s.
    with faults(delay_us=100_000):
        threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()
        with pytest.raises(KeyboardInterrupt):
            run.logits(TOKENS)
        used = run.backend.stats().used
    assert used < model.nbytes / 2, "it went on after the interrupt"
    assert run.logits(TOKENS).tobytes() == want.tobytes()


def test_everything_is_given_back(model: ModelFile) -> None:
    def once() -> None:
        run = streaming(model)
        run.logits(TOKENS)
        with faults(fail_at=100), pytest.raises(WeightReadError):
            run.logits(TOKENS)

    once()
    gc.collect()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    held = process_memory().total
    for _ in range(5):
        once()
    gc.collect()
    assert process_memory().total - held < 8 << 20
    if threads:
        assert len(os.listdir("/proc/self/task")) == threads
        assert len(os.listdir("/proc/self/fd")) == files


def test_the_command_line_says_it_in_one_line(path: Path) -> None:
    code = (
        "import sys, strata._native as n; n.set_read_faults(fail_at=100)\n"
        "from strata.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "run", str(path), "hi", "--threads", "2", "--context"]
    done = subprocess.run([*command, "256"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot be read at byte" in done.stderr
