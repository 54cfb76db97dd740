"""The comparison's arithmetic and its dealings with other programs, with programs made for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("strata._native")

import against_llamacpp as bench


def tool(directory: Path, name: str, body: str) -> None:
    """An executable in Python that stands for one of llama.cpp's."""
    path = directory / name
    path.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    tool(
        tmp_path,
        "llama-bench",
        "if '--version' in sys.argv: sys.exit(print('version: 7'))\n"
        "n = float(sys.argv[sys.argv.index('-n') + 1]) or 100.0\n"
        "print(json.dumps([{'samples_ts': [n, n + 2, n + 1]}]))",
    )
    tool(
        tmp_path,
        "llama-batched-bench",
        "print('noise')\n"
        "for n in sys.argv[sys.argv.index('-npl') + 1].split(','):\n"
        "    print(json.dumps({'pl': int(n), 'speed_tg': 10.0 * int(n)}))",
    )
    tool(tmp_path, "llama-completion", "print('Paris')")
    return tmp_path


@pytest.fixture
def settings(tools: Path) -> bench.Settings:
    return bench.Settings(threads=2, repeat=3, isa=None, tools=tools)


def test_their_side(settings: bench.Settings) -> None:
    assert bench.theirs("m.gguf", "decode:64", settings)["samples"] == [64, 66, 65]
    assert bench.theirs("m.gguf", "prefill:128", settings)["value"] == 101
    assert bench.theirs("m.gguf", "batch:4:32", settings)["samples"] == [40.0, 40.0, 40.0]
    cold = bench.theirs("m.gguf", "cold", settings)
    assert cold["text"].strip() == "Paris"
    assert 0 < cold["value"] < 10
    assert cold["peak_bytes"] > 1_000_000


def test_a_failure_is_told(tmp_path: Path) -> None:
    tool(tmp_path, "broken", "print('no such model', file=sys.stderr); sys.exit(3)")
    with pytest.raises(SystemExit, match="ended with 3: no such model"):
        bench.run([tmp_path / "broken"])


def pair(ours: float, theirs: float, read: float) -> dict[str, Any]:
    return {
        "strata": {"value": ours, "peak_bytes": 200, "bytes": 2.0},
        "llama_cpp": {"value": theirs, "peak_bytes": 300},
        "read_bytes_s": read,
    }


def test_ratios_are_formed_pair_by_pair() -> None:
    # The machine slows down: medians of the sides alone would say 30 / 20.
    pairs = [pair(60, 30, 240.0), pair(30, 20, 120.0), pair(20, 5, 80.0)]
    found = bench.summary(pairs, "decode:64")
    assert (found["ratio_least"], found["ratio"], found["ratio_most"]) == (1.5, 2.0, 4.0)
    assert found["strata_share"] == pytest.approx(0.5)
    assert found["llama_cpp_share"] == pytest.approx(0.25)
    assert found["peak_bytes"]["ratio"] == 1.5
    cold = bench.summary(pairs, "cold")
    assert (cold["ratio_least"], cold["ratio"], cold["ratio_most"]) == (
        0.25,
        0.5,
        pytest.approx(2 / 3),
    )
    assert "strata_share" not in cold


def test_programs_take_turns(
    settings: bench.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        def measured(model: str, work: str, s: bench.Settings) -> dict[str, Any]:
            order.append(name)
            return {"value": 1.0, "peak_bytes": 1, "bytes": 1.0}

        return measured

    def read(command: Any, isa: str | None = None) -> bench.Run:
        order.append("read")
        return bench.Run(json.dumps({"bytes_s": float(len(order))}), 0.0, 0)

    monkeypatch.setattr(bench, "run", read)
    model = tmp_path / "m.gguf"
    model.write_bytes(bytes(10))
    sides = {"strata": side("strata"), "llama_cpp": side("llama_cpp")}
    found = bench.measure(str(model), "decode:1", settings, 2, sides)
    assert order == ["read", "strata", "read", "llama_cpp", "read", "llama_cpp", "read", "strata"]
    assert [p["read_bytes_s"] for p in found["pairs"]] == [3.0, 7.0]
    assert found["file_bytes"] == 10
    assert bench.row(found)[4] == "1.00 (1.00-1.00)"


@pytest.mark.slow
def test_both_sides_on_a_real_model(
    tools: Path, smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    works = "decode:2,prefill:8,batch:2:2,cold"
    options = ["--llama-bin", str(tools), "--works", works, "--pairs", "1", "--repeat", "1"]
    bench.main([str(smollm2_path), *options, "--json", str(out)])
    report = json.loads(out.read_text())
    assert [r["work"] for r in report["results"]] == works.split(",")
    assert report["llama_cpp"] == "version: 7"
    for result in report["results"]:
        assert result["ratio"] > 0
        assert result["pairs"][0]["strata"]["peak_bytes"] > 50_000_000
    decode = report["results"][0]["pairs"][0]["strata"]
    assert decode["bytes"] == pytest.approx(96.6e6, rel=0.01)
    together = report["results"][2]["pairs"][0]["strata"]
    assert together["bytes"] == pytest.approx(96.6e6 / 2, rel=0.02)
    assert "Paris" in report["results"][3]["pairs"][0]["strata"]["text"]
    assert capsys.readouterr().out.count("\n") == 5
