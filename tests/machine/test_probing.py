"""The probe: what it measures is sane, what it knows it keeps, and what it makes it removes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strata.cli import main
from strata.engine import runtime
from strata.engine.plan_check import PlanCheck
from strata.engine.sweeps import SweepTotal
from strata.errors import StrataError, UsageError
from strata.formats import open_model
from strata.machine.machine import Cache
from strata.machine.other_work import OtherWork
from strata.machine.probe import MOST_KNOWN, is_doubted, load_machine, note_run, probe
from strata.machine.probe_compute import ComputeProbe, attention, caches
from strata.machine.probe_disk import DiskProbeError, probe_disk
from strata.plan import Machine, from_json
from support.described import MACHINES, machine


def test_the_disk_under_a_file_and_under_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(os.urandom(1 << 20) * 34)
    rates, latency = probe_disk(file, 0.3)
    assert latency > 0
    assert {d.mode for d in rates} <= {"direct", "buffered"}
    assert ("buffered", 1 << 20, 4) in {(d.mode, d.request_bytes, d.depth) for d in rates}
    # A request for each thread must fit the file.
    assert all(d.request_bytes * d.depth <= file.stat().st_size for d in rates)
    assert all(d.bytes_s > 1e5 for d in rates)
    assert file.exists()


def test_no_memory_to_read_into_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(bytes(34 << 20))
    monkeypatch.setattr("strata.machine.probe_disk.memory_free", lambda: 0)
    with pytest.raises(DiskProbeError, match="no free memory to read into"):
        probe_disk(file, 0.3)


def test_a_scratch_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.machine.probe_disk._SCRATCH_BYTES", 40 << 20)
    (tmp_path / "small.gguf").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "small.gguf"):
        rates, _ = probe_disk(path, 0.1)
        assert rates
    assert [p.name for p in tmp_path.iterdir()] == ["small.gguf"]


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="no folder that nobody may write to")
def test_a_folder_that_cannot_be_written_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even root may write there."""
    monkeypatch.setattr("strata.machine.probe_disk._SCRATCH_BYTES", 40 << 20)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rates, _ = probe_disk(Path("/proc/sys"), 0.2)
    assert all(d.bytes_s > 1e5 for d in rates)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskProbeError, match="cannot be measured"):
        probe_disk(tmp_path / "nothing" / "here", 0.1)


@pytest.mark.slow
def test_kernels_memory_and_attention() -> None:
    compute = ComputeProbe(2, "scalar", 1 << 20, 1 << 30)
    try:
        reads = compute.memory_read(0.05)
        assert [r.threads for r in reads] == [1, 2]
        assert all(r.bytes_s > 1e8 for r in reads)
    finally:
        compute.close()
    rate, overhead = attention(1, "scalar", 1 << 30)
    assert rate.decode_bytes_s > 1e6
    assert rate.prefill_ops_s > 1e6
    assert 0 < overhead < 0.1


def test_every_format_with_kernels_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.machine.probe_compute._PREFILL_ROWS", 2)
    monkeypatch.setattr("strata.machine.probe_compute._N", 64)
    compute = ComputeProbe(1, "scalar", 1 << 20, 1 << 27)
    try:
        rates = compute.kernels(0.1)
    finally:
        compute.close()
    assert {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K"} <= {k.format for k in rates}
    assert all(min(k.decode_bytes_s, k.prefill_ops_s, k.pack_bytes_s) > 0 for k in rates)


def test_caches_of_a_processor(tmp_path: Path) -> None:
    for index, (level, kind, size, shared) in enumerate(
        [(1, "Data", "48K", "0"), (1, "Instruction", "32K", "0"), (3, "Unified", "32M", "0-3,8")]
    ):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        for name, text in (
            ("level", level),
            ("type", kind),
            ("size", size),
            ("shared_cpu_list", shared),
        ):
            (folder / name).write_text(f"{text}\n")
    assert caches(tmp_path) == (Cache(1, 49152, 1), Cache(3, 32 << 20, 5))
    assert caches(tmp_path / "nothing") == ()


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths for which something was measured."""
    calls: list[Path] = []

    def measure(path: Path, progress: object) -> Machine:
        calls.append(path)
        return machine("laptop")

    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("strata.machine.probe._measure", measure)
    return calls


def test_what_is_known_is_not_measured_again(
    tmp_path: Path, measured: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, known = probe(tmp_path)
    assert (len(measured), known) == (1, False)
    again, known = probe(tmp_path / "not there yet" / "x")
    assert (len(measured), known) == (1, True)
    # Memory is looked at anew each time.
    assert replace(again, memory_available=0) == replace(first, memory_available=0)
    assert 0 < first.memory_available < first.memory_total != machine("laptop").memory_total
    assert probe(tmp_path, refresh=True)[1] is False
    assert len(measured) == 2
    with monkeypatch.context() as patch:
        patch.setattr("strata.machine.probe.cpu_name", lambda: "another processor")
        assert probe(tmp_path)[1] is False
        assert len(measured) == 3
    # Two installations, of different builds, by turns.
    assert probe(tmp_path)[1] is True
    for number in range(20):
        monkeypatch.setattr("strata.machine.probe._native_stamp", lambda n=number: str(n))
        assert probe(tmp_path)[1] is False
    assert len(list((tmp_path / "home" / "machines").iterdir())) == MOST_KNOWN


@pytest.mark.parametrize("damage", ["", "[]", '{"fingerprint": 1}', "{", '{"machine": {}}'])
def test_a_damaged_memory_is_no_trouble(tmp_path: Path, measured: list[Path], damage: str) -> None:
    probe(tmp_path)
    (kept,) = (tmp_path / "home" / "machines").iterdir()
    kept.write_text(damage)
    assert probe(tmp_path)[1] is False
    assert probe(tmp_path)[1] is True


def test_a_home_that_cannot_be_written_only_costs_time(
    tmp_path: Path, measured: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "file" / "home"))
    assert probe(tmp_path)[1] is False
    assert probe(tmp_path)[1] is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cores": "8"}, r"cores is '8': a int is expected"),
        ({"disk": [{"mode": "telepathy"}]}, r"disk\[0\]"),
        ({"attention": None}, "an object is expected"),
        ({"colour": 1}, "no field 'colour'"),
        ({"read_latency_s": float("inf")}, "finite"),
    ],
)
def test_a_machine_file_is_checked(tmp_path: Path, change: dict[str, object], says: str) -> None:
    data = json.loads((MACHINES / "laptop.json").read_text()) | change
    (tmp_path / "m.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=says):
        load_machine(tmp_path / "m.json")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\0", "3"])
def test_what_is_no_machine_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match="not a machine file"):
        load_machine(tmp_path / "m.json")


def test_the_verb(tmp_path: Path, measured: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path), "-q"]) == 0
    out = capsys.readouterr().out
    assert "eight cores" in out
    assert "direct 256 KiB" in out
    assert main(["probe", str(tmp_path), "--json"]) == 0
    printed = from_json(Machine, json.loads(capsys.readouterr().out))
    assert printed.disk == machine("laptop").disk


def test_measuring_that_is_ended_is_not_done_here(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a group of the budget there may be no room for it, and here there is less."""
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "_PROBE", "import os; os.kill(os.getpid(), 9)")
    with open_model(smollm2_path) as file, pytest.raises(StrataError, match="strata probe /"):
        runtime.this_machine(file)
    assert not list(tmp_path.rglob("*.json"))


def test_others_are_seen(tmp_path: Path) -> None:
    """Of 100 ticks that two processors had, 60 were busy, and hardly any of them ours."""
    stat = tmp_path / "proc" / "stat"
    stat.parent.mkdir()
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0\n")
    others = OtherWork(tmp_path)
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {30 * ticks} 0 {20 * ticks} {40 * ticks} 0 0 0 {10 * ticks} 0 0\n")
    assert 0.5 < others.share() <= 0.6
    stat.write_text("nonsense")
    assert others.share() == 0.0
    assert OtherWork(tmp_path / "nowhere").share() == 0.0


def test_what_was_measured_on_a_busy_machine_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    quiet = machine("server")
    measured = [replace(quiet, busy=0.4), replace(quiet, spread=0.5), quiet, quiet]
    monkeypatch.setattr("strata.machine.probe._measure", lambda *_: measured.pop(0))
    assert main(["probe", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["busy"] == 0.4
    assert "others took 40%" in captured.err
    # A second one that is no better does not replace it.
    assert main(["probe", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["busy"] == 0.4
    assert main(["probe", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["busy"] == 0.0
    assert main(["probe", str(tmp_path)]) == 0
    assert "measured before" in capsys.readouterr().err
    assert len(measured) == 1


def test_runs_that_were_not_as_predicted_have_it_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    quiet = machine("server")
    slow = replace(quiet, memory_read=tuple(replace(r, bytes_s=1e9) for r in quiet.memory_read))
    measured = [slow, quiet, quiet, slow]
    monkeypatch.setattr("strata.machine.probe._measure", lambda *_: measured.pop(0))
    probe(tmp_path)

    def after(*ratios: float) -> bool:
        for ratio in ratios:
            note_run(tmp_path, ratio)
        return probe(tmp_path)[1]

    # As predicted, too few, or now faster and now slower: nothing is wrong with the probe.
    assert after(1.0, 1.4, 0.7)
    assert after(2.0, 3.0, 1.0, 2.0, 2.0, 0.3)
    assert after(0.3)
    assert not is_doubted(tmp_path)
    assert not after(0.3)
    assert (len(measured), is_doubted(tmp_path)) == (2, False)
    # Another that finds the same settles it.
    assert not after(2.0, 2.0, 2.0)
    assert after(2.0, 2.0, 2.0, 2.0)
    probe(tmp_path, refresh=True)
    assert not measured
    note_run(tmp_path, 3.0)
    (kept,) = (tmp_path / "machines").iterdir()
    assert json.loads(kept.read_text())["doubts"] == {
        "runs": [3.0],
        "settled": False,
        "again": 0,
    }
    kept.write_text(kept.read_text().replace("[3.0]", '"x"'))
    assert probe(tmp_path)[1]


def doubt(path: Path) -> None:
    for _ in range(3):
        note_run(path, 0.1)
    assert is_doubted(path)


@pytest.mark.parametrize("end", ["import os; os.kill(os.getpid(), 9)", "raise SystemExit(1)"])
def test_a_doubted_machine_is_used_where_it_cannot_be_measured(
    smollm2_path: Path,
    measured: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    monkeypatch.setattr(runtime, "_PROBE", end)
    monkeypatch.setattr("strata.machine.other_work.at_rest", lambda: True)
    probe(smollm2_path)
    doubt(smollm2_path)
    with open_model(smollm2_path) as file:
        assert runtime.this_machine(file).cpu == machine("laptop").cpu
    # Not tried again at every start, nor in this process.
    assert not is_doubted(smollm2_path)
    assert len(measured) == 1


def test_a_doubted_machine_is_not_measured_while_others_work(
    smollm2_path: Path, measured: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_PROBE", "raise SystemExit(1)")
    monkeypatch.setattr("strata.machine.other_work.at_rest", lambda: False)
    probe(smollm2_path)
    doubt(smollm2_path)
    with open_model(smollm2_path) as file:
        assert runtime.this_machine(file).cpu == machine("laptop").cpu
    assert is_doubted(smollm2_path)


def test_a_quiet_probe_is_not_replaced_by_a_noisy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    quiet = machine("server")
    slow = tuple(replace(r, bytes_s=1e9) for r in quiet.memory_read)
    measured = [quiet, replace(quiet, memory_read=slow, busy=0.6)]
    monkeypatch.setattr("strata.machine.probe._measure", lambda *_: measured.pop(0))
    probe(tmp_path)
    doubt(tmp_path)
    found, known = probe(tmp_path)
    assert (found.memory_read, known) == (quiet.memory_read, False)


def test_measuring_again_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a neighbour that comes and goes every probe finds something else."""
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    quiet = machine("server")
    rates = iter(range(1, 100))

    def measured(*_: object) -> object:
        rate = next(rates)
        return replace(
            quiet, memory_read=tuple(replace(r, bytes_s=rate * 1e9) for r in quiet.memory_read)
        )

    monkeypatch.setattr("strata.machine.probe._measure", measured)
    for _ in range(10):
        probe(tmp_path)
        for _ in range(3):
            note_run(tmp_path, 0.1)
        note_run(tmp_path, 1.0)
        for _ in range(3):
            note_run(tmp_path, 3.0)
    assert next(rates) == 5


def test_a_run_whose_model_is_deleted_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(predicted=SimpleNamespace(concurrency=1, decode_tok_s=10.0))
    done: Any = SimpleNamespace(decode=SweepTotal(100, 100, 5.0))
    PlanCheck(tmp_path / "gone.gguf", plan, done).end()


@pytest.mark.parametrize("runs", ["[1%s]" % ("0" * 400), "[Infinity, NaN]", '"12"'])
def test_damaged_doubts_are_no_trouble(tmp_path: Path, measured: list[Path], runs: str) -> None:
    probe(tmp_path)
    note_run(tmp_path, 3.0)
    (kept,) = (tmp_path / "home" / "machines").iterdir()
    kept.write_text(kept.read_text().replace("[3.0]", runs))
    assert not is_doubted(tmp_path)
    note_run(tmp_path, 3.0)


@pytest.mark.parametrize(
    ("sweeps", "tokens", "seconds", "concurrency", "ratio"),
    [
        (100, 100, 5.0, 1, 2.0),
        (100, 105, 5.0, 1, 2.1),
        (20, 20, 5.0, 1, None),
        (100, 100, 1.0, 1, None),
        (100, 180, 5.0, 1, None),
        (100, 100, 5.0, 2, None),
    ],
)
def test_a_run_is_compared_with_its_plan_where_it_says_something(
    tmp_path: Path,
    sweeps: int,
    tokens: int,
    seconds: float,
    concurrency: int,
    ratio: float | None,
) -> None:
    plan: Any = SimpleNamespace(
        predicted=SimpleNamespace(concurrency=concurrency, decode_tok_s=10.0)
    )
    done: Any = SimpleNamespace(decode=SweepTotal(sweeps, tokens, seconds))
    assert PlanCheck(tmp_path, plan, done).ratio() == ratio
