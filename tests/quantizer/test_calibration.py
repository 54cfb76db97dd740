"""Importance, error propagation and the mix, on a small model and a text."""

from __future__ import annotations

import io
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
from strata.cli import main
from strata.formats import open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.memory import process_memory
from strata.models import build_model
from strata.quant import by_name, dequantize
from strata.quantizer import compensate
from strata.quantizer.compensate import drift_of
from strata.quantizer.distilling import distil
from strata.quantizer.importance import (
    ImportanceError,
    ImportanceMatrix,
    Squares,
    read_importance,
    split_experts,
    write_importance,
)
from strata.quantizer.room import calibration_bytes
from strata.synth import SHAPES, describe, with_layers, write_model
from support.forward import Forward

TEXT = "The quick brown fox jumps over the lazy dog, and 23 others do so too. " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path) -> Path:
    """A llama of floats, one with experts, and a text."""
    path = tmp_path_factory.mktemp("calibration")
    make_tiny_models.write_gguf(path / "llama.gguf", make_tiny_models.golden("llama"))
    mixture = replace(
        with_layers(SHAPES["mixtral-8x7b"], 2),
        width=64,
        ffn=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab=512,
        context=512,
    )
    with open_model(smollm2_path) as source:
        tokenizer = dict(source.metadata)
    write_model(mixture, path / "mixtral.gguf", recipe="F16", tokenizer=tokenizer)
    (path / "text.txt").write_text(TEXT)
    return path


def run(*args: object) -> int:
    return main([str(a) for a in args])


def test_importance_is_the_sum_of_squares_of_inputs(folder: Path) -> None:
    out = folder / "i.gguf"
    args = ("--text", folder / "text.txt", "-o", out, "-c", 32, "--chunks", 3, "-q")
    assert run("imatrix", folder / "llama.gguf", *args) == 0
    matrix = read_importance(out)
    assert matrix.chunks == 3
    assert matrix.chunk_size == 32
    gate, up = (matrix.entries[f"blk.0.ffn_{kind}.weight"] for kind in ("gate", "up"))
    assert np.array_equal(gate.sums, up.sums)
    assert gate.counts.tolist() == [96]
    # What comes into the last products is there as the model's own embeddings, but for their norm.
    with open_model(folder / "llama.gguf") as file:
        heads = {"output.weight", "token_embd.weight"} & set(matrix.entries)
        assert len(heads) == 1
        names = {n for n, i in file.tensors.items() if len(i.shape) > 1}
    assert set(matrix.entries) >= names - {"output.weight", "token_embd.weight"}


def test_experts_are_counted_by_the_rows_that_come_to_them(folder: Path) -> None:
    out = folder / "e.gguf"
    args = ("--text", folder / "text.txt", "-o", out, "-c", 32, "--chunks", 2, "-q")
    assert run("imatrix", folder / "mixtral.gguf", *args) == 0
    matrix = read_importance(out)
    entry = next(e for n, e in matrix.entries.items() if "ffn_down_exps" in n)
    assert len(entry.sums) > 1
    assert entry.counts.sum() % 64 == 0
    assert len(set(entry.counts.tolist())) > 1


def test_both_forms_of_file_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sums = rng.random((2, 8)).astype(np.float32)
    made = ImportanceMatrix(
        {"a.weight": Squares(sums, np.array([3, 0], np.float32))}, ("t",), 5, 64
    )
    write_importance(tmp_path / "i.gguf", made)
    read = read_importance(tmp_path / "i.gguf")
    assert read.identity == made.identity
    assert (read.datasets, read.chunks, read.chunk_size) == (("t",), 5, 64)
    old = struct.pack("<ii8s", 1, 8, b"a.weight") + struct.pack("<ii", 4, 16) + sums.tobytes()
    (tmp_path / "i.dat").write_bytes(old + struct.pack("<ii1s", 5, 1, b"t"))
    read = split_experts(read_importance(tmp_path / "i.dat"), {"a.weight": (2, 7, 8)})
    assert np.array_equal(read.entries["a.weight"].sums, sums)
    for broken in (old[:30], b"xyz", struct.pack("<i", 0), old[:-4] + b"\0\0\xc0\x7f"):
        (tmp_path / "b.dat").write_bytes(broken)
        with pytest.raises(ImportanceError):
            read_importance(tmp_path / "b.dat")


def divergence(folder: Path, path: Path) -> float:
    """Mean KL of a file's logits on other text."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 60, 96).tolist()

    def logprobs(file: Path) -> np.ndarray:
        with open_model(file) as opened:
            logits = Forward(opened).logits(tokens).astype(np.float64)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    p, q = logprobs(folder / "llama.gguf"), logprobs(path)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("said", [5, np.ones(3, np.float32), "a", True])
def test_names_of_texts_that_are_none_are_left_out(tmp_path: Path, said: Any) -> None:
    shape, ones = (2, 8), np.ones((2, 8), np.float32)
    tensors = [
        TensorSource.of(f"a.weight.{name}", shape, by_name("F32"), values)
        for name, shape, values in (("in_sum2", shape, ones), ("counts", (2, 1), ones[:, :1]))
    ]
    write_gguf(tmp_path / "i.gguf", {"general.type": "imatrix", "imatrix.datasets": said}, tensors)
    assert read_importance(tmp_path / "i.gguf").entries["a.weight"].sums.shape == shape
    write_gguf(tmp_path / "j.gguf", {"general.type": said}, tensors)
    with pytest.raises(ImportanceError, match="no importance matrix"):
        read_importance(tmp_path / "j.gguf")


def test_calibrating_beyond_the_budget_is_refused_before_it_begins(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.gguf"
    text = ("--calibration", folder / "text.txt", "-c", 32, "--chunks", 2, "-q")
    here = process_memory().total
    for model, wish in (("llama.gguf", ("--type", "Q4_0")), ("mixtral.gguf", ("--bpw", 4.6))):
        args = ("quantize", folder / model, out, *wish, *text)
        assert run(*args, "-m", here + 40_000_000) == 2
        said = capsys.readouterr().err
        assert "calibrating takes up to" in said
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())
    assert run(*args[:2], out, "--type", "Q4_0", *text, "-m", here + 400_000_000) == 0


def test_what_calibrating_takes_grows_with_what_it_does() -> None:
    model = build_model(describe(SHAPES["llama-3.2-1b"], "F16"), 512)
    plain = calibration_bytes(model, 8, 512, 1)
    # A layer of the largest matrix, three times: there, as read, and decoded.
    assert plain > 4 * 128256 * 2048
    assert calibration_bytes(model, 8, 512, 2) > plain
    assert calibration_bytes(model, 9, 512, 1) > plain
    # The moments of 8192 columns, in doubles, and what factoring them takes.
    assert calibration_bytes(model, 8, 512, 1, propagated=True) > 7 * 8 * 8192**2


def test_error_propagation_reads_the_text_and_not_the_threads(folder: Path, tmp_path: Path) -> None:
    model, text = folder / "llama.gguf", folder / "text.txt"
    outs = []
    for threads in (1, 2):
        out = tmp_path / f"{threads}.gguf"
        args = ("--type", "Q4_0", "--pure", "--calibration", text, "-c", 64, "--chunks", 12, "-q")
        assert run("quantize", model, out, *args, "-t", threads) == 0
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]
    plain = tmp_path / "plain.gguf"
    assert run("quantize", model, plain, "--type", "Q4_0", "--pure", "-q") == 0
    with open_model(tmp_path / "1.gguf") as a, open_model(plain) as b, open_model(model) as c:
        assert set(a.tensors) == set(c.tensors)
        name = "blk.0.ffn_down.weight"
        assert a.tensors[name].type == b.tensors[name].type
        assert not np.array_equal(a.read(name), b.read(name))
        w = dequantize(c.tensors[name].type, c.read(name), c.tensors[name].shape)
        x = dequantize(a.tensors[name].type, a.read(name), a.tensors[name].shape)
        assert np.abs(x - w).max() < np.abs(w).max()


def test_a_short_text_does_not_say_how_inputs_drift(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(moments: np.ndarray, crossed: np.ndarray) -> np.ndarray:
        asked.append(len(moments))
        return drift_of(moments, crossed)

    monkeypatch.setattr(compensate, "drift_of", counted)
    args = ("--type", "Q4_0", "--calibration", folder / "text.txt", "-c", 64, "-q", "-t", 1)
    # Columns are 64 at least: ten times as many rows are those of ten windows.
    assert run("quantize", folder / "llama.gguf", tmp_path / "a.gguf", *args, "--chunks", 9) == 0
    assert asked == []
    assert run("quantize", folder / "llama.gguf", tmp_path / "b.gguf", *args, "--chunks", 10) == 0
    assert set(asked) == {64}


def test_every_layer_is_distilled_and_loses_no_more(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, outs = [], []

    def seen(*args: Any) -> tuple[float, float]:
        errors.append(distil(*args))
        return errors[-1]

    monkeypatch.setattr(compensate, "distil", seen)
    for threads in (1, 2):
        out = tmp_path / f"{threads}.gguf"
        args = ("--type", "Q4_0", "--calibration", folder / "text.txt", "-c", 64, "--chunks", 4)
        more = ("-q", "-t", threads, "--distil", 6)
        assert run("quantize", folder / "llama.gguf", out, *args, *more) == 0
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]
    with open_model(folder / "llama.gguf") as file:
        layers = sum(name.endswith("ffn_down.weight") for name in file.tensors)
    assert len(errors) == 2 * layers
    assert errors[:layers] == errors[layers:]
    assert all(after <= before for before, after in errors)


def test_what_distilling_finds_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: Any) -> tuple[float, float]:
        for m in args[2]:
            m.raw = np.zeros_like(m.raw)
        return 1.0, 1.0

    monkeypatch.setattr(compensate, "distil", nothing)
    out, args = tmp_path / "o.gguf", ("--type", "Q4_0", "--calibration", folder / "text.txt")
    more = ("-c", 64, "--chunks", 4, "-q", "--distil", 1)
    assert run("quantize", folder / "llama.gguf", out, *args, *more) == 0
    with open_model(out) as file:
        assert not file.read("blk.1.ffn_down.weight").any()


@pytest.mark.parametrize("more", [(), ("--no-gptq",)])
def test_distilling_goes_by_a_text_after_error_propagation(
    more: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if more:
        more = (*more, "--calibration", str(folder / "text.txt"))
    assert run("quantize", folder / "llama.gguf", tmp_path / "c.gguf", "--distil", 2, *more) == 2
    assert "--distil goes by a text" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_experts_are_rounded_one_by_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    args = ("--type", "Q4_1", "--calibration", folder / "text.txt", "-c", 64, "--chunks", 4, "-q")
    assert run("quantize", folder / "mixtral.gguf", out, *args) == 0
    with open_model(out) as file:
        logits = Forward(file).logits([1, 2, 3])
    assert np.isfinite(logits).all()


def test_a_mix_fits_loses_less_with_room_and_is_had_again_from_its_recipe(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = folder / "llama.gguf", folder / "text.txt"
    losses, common = [], ("--calibration", text, "-c", 64, "--chunks", 3)
    for bits in (4.8, 5.5, 7):
        out, recipe = tmp_path / f"{bits}.gguf", tmp_path / f"{bits}.txt"
        args = ("--bpw", bits, "--write-recipe", recipe, "--json", *common)
        assert run("quantize", model, out, *args) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["bits_per_weight"] <= bits
        losses.append(divergence(folder, out))
    assert losses[0] > losses[2]
    again = tmp_path / "again.gguf"
    assert run("quantize", model, again, "--recipe", recipe, "-q", *common) == 0
    assert again.read_bytes() == out.read_bytes()
    size = out.stat().st_size
    fitted = tmp_path / "fitted.gguf"
    assert run("quantize", model, fitted, "--size", size, "-q") == 0
    assert fitted.stat().st_size <= size
    assert run("quantize", model, tmp_path / "no.gguf", "--size", "1kB", "-q") == 2
    assert "too small" in capsys.readouterr().err


def test_a_float_model_runs_with_the_bits_of_the_file(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    model, out = folder / "llama.gguf", tmp_path / "out.gguf"
    assert run("quantize", model, out, "--type", "Q4_K", "-q") == 0
    capsys.readouterr()
    answers = []
    for args in ((model, "--quantize", "q4_k"), (model, "--quantize", "Q4_K_M"), (out,)):
        assert run("run", *args, "a b c", "--raw", "-n", 8, "--json", "-q") == 0
        answers.append(json.loads(capsys.readouterr().out)["text"])
    assert answers[0] == answers[1] == answers[2]
    (copy,) = (tmp_path / "home" / "quantised").glob("*.gguf")
    assert copy.read_bytes() == out.read_bytes()
    assert run("run", out, "a", "--raw", "--quantize", "Q4_K") == 2
    assert "quantised already" in capsys.readouterr().err


def test_weights_make_up_for_inputs_that_drifted() -> None:
    """What is added to them is the ridge regression of what is missing on the inputs there are."""
    rng = np.random.default_rng(7)
    plain = rng.standard_normal((400, 24))
    now = (
        plain + 0.2 * plain @ rng.standard_normal((24, 24)) + 0.01 * rng.standard_normal((400, 24))
    )
    weights = rng.standard_normal((5, 24))
    moments, crossed = now.T @ now, (plain - now).T @ now
    moved = weights + weights @ drift_of(moments, crossed)
    held = np.sqrt(0.1 * np.diag(moments).mean()) * np.eye(24)
    wanted = (plain - now) @ weights.T
    rows = np.concatenate([now, held])
    best = np.linalg.lstsq(rows, np.concatenate([wanted, np.zeros((24, 5))]), rcond=None)[0].T
    assert np.allclose(moved - weights, best, atol=1e-8)
    target = plain @ weights.T

    def error(w: np.ndarray) -> float:
        return float(((now @ w.T - target) ** 2).sum())

    assert error(moved) < 0.2 * error(weights)
    # Inputs that stayed leave weights as they are.
    assert not drift_of(moments, np.zeros((24, 24))).any()
