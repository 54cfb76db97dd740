"""Two commits side by side: the bits' comparison, and the arithmetic and turns of their speeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("strata._native")

import between_commits as bench
import compare_bits
import machine
from compare_bits import differences, obstacles


def bits(*floats: float) -> Any:
    return np.array([floats]).view(np.uint64)


def test_equal_bits_are_no_difference() -> None:
    sides = [{"a": bits(1.0, float("nan")), "b": bits(2.0)} for _ in range(2)]
    assert differences(*sides) == []


def test_one_bit_is_a_difference() -> None:
    before = {"a": bits(1.0), "b": bits(1.0, 2.0, 3.0)}
    after = {"a": bits(1.0), "b": bits(1.0, np.nextafter(2.0, 3.0), 3.0)}
    assert differences(before, after) == ["b: 1 of 3 values differ, first at [0, 1]"]
    # Equal as numbers, not as bits.
    assert len(differences({"a": bits(0.0)}, {"a": bits(-0.0)})) == 1


def test_a_missing_case_is_a_difference() -> None:
    a, b = {"a": bits(1.0)}, {"b": bits(1.0)}
    assert differences(a, b) == ["a: missing after", "b: missing before"]
    assert differences({}, {}) == ["there is no case on either side"]


def test_shapes_and_types_are_compared() -> None:
    long, short = {"a": bits(1.0, 1.0)}, {"a": bits(1.0)}
    assert differences(long, short) == ["a: shape (1, 2) before, (1, 1) after"]
    assert differences(short, {"a": short["a"].view(np.float64)}) == [
        "a: uint64 before, float64 after"
    ]


def test_other_files_or_instruction_sets_are_another_experiment() -> None:
    one = {"isas": {"best": "avx512", "avx2": "avx2"}, "models": {"m": "1", "n": "2"}}
    assert obstacles(one, one) == []
    other = {"isas": {"best": "avx2", "avx2": "avx2"}, "models": {"m": "1", "n": "3"}}
    assert obstacles(one, other) == [
        "the instruction set 'best' was avx512 before and avx2 after",
        "the model file n is not the same",
    ]
    assert obstacles(one, {**one, "models": {"m": "1"}}) == ["the model file n is not the same"]


@pytest.mark.parametrize(("value", "isa", "code"), [(1.0, "x", 0), (2.0, "x", 1), (1.0, "y", 2)])
def test_the_exit_code_says_it(tmp_path: Path, value: float, isa: str, code: int) -> None:
    for name, number, kind in (("before", 1.0, "x"), ("after", value, isa)):
        np.savez(tmp_path / f"{name}.npz", **{"best/m/f16/long": bits(number)})
        text = json.dumps({"isas": {"best": kind}, "models": {}})
        (tmp_path / f"{name}.json").write_text(text)
    files = [str(tmp_path / f"{name}.npz") for name in ("before", "after")]
    done = subprocess.run([sys.executable, compare_bits.__file__, *files], capture_output=True)
    assert done.returncode == code
    assert (b"best/m/f16/long: 1 of 1 values differ" in done.stdout) == (code == 1)


def test_sides_take_turns() -> None:
    order = []

    def measure(side: str) -> dict[str, float]:
        order.append(side)
        return {"tok_s": float(len(order))}

    rounds = bench.in_turns(3, measure)
    assert "".join(side[0] for side in order) == "baabba"
    assert [r["before"]["tok_s"] for r in rounds] == [1, 4, 5]


def test_ratios_are_formed_round_by_round() -> None:
    # The machine slows down: medians of the sides alone would say 30 / 20.
    sides = [(60.0, 30.0), (30.0, 20.0), (20.0, 5.0)]
    rounds = [{"before": {"tok_s": b}, "after": {"tok_s": a}} for a, b in sides]
    found = bench.summary(rounds)["tok_s"]
    assert (found["before"], found["after"]) == (20, 30)
    assert (found["ratio_least"], found["ratio"], found["ratio_most"]) == (1.5, 2.0, 4.0)


def test_commands_are_told_without_folders() -> None:
    words = ["bench/between_commits.py", "--before", "/somewhere/bin/python", "--rounds", "3"]
    assert machine.command(words) == "between_commits.py --before python --rounds 3"


def test_the_installed_package_is_known() -> None:
    found = bench.about(sys.executable)
    assert found["version"]
    assert found["commit"] is None or len(found["commit"]) >= 7


@pytest.mark.slow
def test_both_sides_on_a_real_model(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = ["--before", sys.executable, "--after", sys.executable]
    sizes = ["--rounds", "1", "--turns", "1", "--repeat", "1", "--clients", "2", "--requests", "1"]
    works = ["--works", "decode,server", "--model", str(smollm2_path)]
    bench.main([*python, *sizes, *works])
    report = json.loads(capsys.readouterr().out)
    assert list(report["works"]) == ["decode", "server"]
    for work in report["works"].values():
        assert all(row["ratio"] > 0 for row in work["summary"].values())
    assert report["works"]["server"]["summary"]["tok_s"]["before"] > 0
