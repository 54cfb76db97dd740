"""Processes that share a store of prefixes and are killed at any moment, a disk that is full and a
directory that goes away: never a wrong token, and nothing touched that is not the store's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from strata import LLM, SamplingParams
from strata.kv.store_directory import StoreError

pytestmark = pytest.mark.slow

# A hundred take minutes: STRATA_TEST_KILLS=100.
KILLS = int(os.environ.get("STRATA_TEST_KILLS", "15"))
PROMPTS = [[40 + (i * i + k) % 4000 for i in range(150 + 64 * k)] for k in range(3)]
PARAMS = SamplingParams(max_tokens=4, logprobs=2, ignore_eos=True)

PROGRAM = """
import sys
from test_killed_processes import PARAMS, PROMPTS
from strata import LLM
with LLM(sys.argv[1], threads=1, context=512, kv_store=sys.argv[2], kv_store_bytes=3 << 20) as llm:
    print("ready", flush=True)
    while True:
        for prompt in PROMPTS:
            llm.generate(prompt, PARAMS)
"""


@pytest.fixture(scope="module")
def right(smollm2_path: Path) -> list[object]:
    """What is answered without a store."""
    with LLM(smollm2_path, threads=2, context=512) as llm:
        return [llm.generate(prompt, PARAMS).logprobs for prompt in PROMPTS]


def answers(model: Path, store: Path) -> tuple[list[object], int]:
    """What is answered with a store, and how many tokens came out of it."""
    with LLM(model, threads=2, context=512, kv_store=store) as llm:
        outputs = [llm.generate(prompt, PARAMS) for prompt in PROMPTS]
    return [output.logprobs for output in outputs], sum(o.cached_tokens for o in outputs)


def theirs(folder: Path) -> None:
    """What others have, under names like the store's own, all around it."""
    stem = f"{'0' * 32}-{'1' * 64}-{'2' * 16}"
    (folder / "photos").mkdir()
    for name in (f"{stem}.kv", f"{'3' * 32}-{'4' * 16}.tmp", "strata-kv-store", "notes.kv"):
        (folder / name).write_bytes(name.encode() * 9)
        (folder / "photos" / name).write_bytes(name.encode() * 7)
    (folder / "photos" / "link.kv").symlink_to(folder / "notes.kv")


def looked_at(folder: Path, store: Path) -> dict[str, object]:
    """All that is in a folder but for the store: kind, size, times, contents."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path != store and store not in path.parents:
            seen = path.lstat()
            held = path.read_bytes() if path.is_file() else None
            found[str(path)] = seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns, held
    return found


def test_kill_at_random_moments(smollm2_path: Path, tmp_path: Path, right: list[object]) -> None:
    theirs(tmp_path)
    store = tmp_path / "kv"
    before = looked_at(tmp_path, store)
    random = np.random.default_rng(0)
    command = [sys.executable, "-c", PROGRAM, str(smollm2_path), str(store)]
    paths = os.pathsep.join(sys.path)
    found = 0
    for number in range(KILLS):
        environment = {**os.environ, "PYTHONPATH": paths}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            # What comes to lie in it while it is open is passed over; it is refused after that.
            intruder = store / f"{'a' * 32}-{'b' * 64}-{'c' * 16}.kv"
            if number % 10 == 0:
                intruder.write_bytes(b"theirs")
            time.sleep(float(random.uniform(0, 1.0)))
            process.kill()
        if number % 10 == 0:
            assert intruder.read_bytes() == b"theirs"
            held = sorted(path.name for path in store.iterdir())
            with pytest.raises(StoreError, match="has not made"):
                answers(smollm2_path, store)
            assert sorted(path.name for path in store.iterdir()) == held
            intruder.unlink()
        if number % 5 == 4:
            answered, known = answers(smollm2_path, store)
            assert answered == right
            found += known
        assert looked_at(tmp_path, store) == before
    assert found > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which some prefixes of the model fit, and not all."""
    command = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "none", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk(
    smollm2_path: Path,
    small_disk: Path,
    right: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = small_disk / "kv"
    kept, _ = answers(smollm2_path, store)
    assert kept == right
    assert "No space left" in caplog.text
    assert not list(store.glob("*.tmp"))
    # What fitted before it was full is found, and right.
    again, known = answers(smollm2_path, store)
    assert again == right
    assert known > 0


def test_a_directory_that_vanishes(smollm2_path: Path, tmp_path: Path, right: list[object]) -> None:
    store = tmp_path / "kv"
    with LLM(smollm2_path, threads=2, context=512, kv_store=store) as llm:
        first = llm.generate(PROMPTS[0], PARAMS).logprobs
        while store.exists():  # something may be written into it just now
            shutil.rmtree(store, ignore_errors=True)
        outputs = [llm.generate(prompt, PARAMS) for prompt in PROMPTS]
        assert [output.logprobs for output in outputs] == right
        assert first == right[0]
        assert not store.exists()
    answered, _ = answers(smollm2_path, store)
    assert answered == right
