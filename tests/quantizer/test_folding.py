"""Scales that move from one weight to another: answers stay, and rounding loses no more."""

from __future__ import annotations

import tracemalloc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
from strata.backends.weights import WeightSource
from strata.cli import main
from strata.formats import open_model
from strata.models import build_model
from strata.quant import by_name
from strata.quantizer.encoder import Encoder
from strata.quantizer.folding import (
    Change,
    Fold,
    Folded,
    activation_aware,
    changes_of,
    choose_scales,
    divide_importance,
    find_folds,
    lost_by,
    smoothing,
)
from strata.quantizer.importance import ImportanceMatrix, Squares
from strata.quantizer.opening import source_of
from strata.quantizer.quantise import quantise
from strata.quantizer.sources import Source, SourceTensor
from strata.quantizer.sweeps import Sweep, windows_of
from strata.quantizer.turning import Turn, Turned, find_turn, turned
from support.forward import Forward

TOKENS = [5, 9, 33, 2, 71, 8, 60, 17, 4, 4, 90, 23]
FAMILIES = (
    "llama",
    "llama_tied_biased",
    "qwen2",
    "qwen3",
    "granite",
    "phi3_short",
    "gpt2",
    "gemma3",
    "olmo2",
)


def tiny(path: Path, family: str) -> Path:
    make_tiny_models.write_gguf(path / f"{family}.gguf", make_tiny_models.golden(family))
    return path / f"{family}.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_whatever_the_scales(family: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    with open_model(tiny(tmp_path, family)) as file:
        found = find_folds(build_model(file))
        assert found
        scales = {
            i: np.exp(rng.normal(size=f.width)).astype(np.float32) for i, f in enumerate(found)
        }
        source = source_of(file)
        folded = Folded(file, source, changes_of(source, scales, found))
        assert {n: i.shape for n, i in folded.tensors.items()} == {
            n: i.shape for n, i in file.tensors.items()
        }
        changed = [n for n in folded.tensors if not np.array_equal(folded.read(n), file.read(n))]
        assert len(changed) > len(found)
        before, after = Forward(file).logits(TOKENS), Forward(folded).logits(TOKENS)
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()


def test_scales_are_found_where_both_sides_are_weights(tmp_path: Path) -> None:
    with open_model(tiny(tmp_path, "llama")) as file:
        found = find_folds(build_model(file))
        first = [f for f in found if f.segment == 1]
    # Behind both norms, from values to the output of attention, and from ups to downs.
    assert [len(f.multiplied) for f in first] == [3, 1, 2, 1]
    values = next(f for f in first if f.multiplied == ("blk.0.attn_output.weight",))
    assert [d.tensor for d in values.divided] == ["blk.0.attn_v.weight"]
    assert values.width < len(values.order)
    assert sorted(set(values.order.tolist())) == list(range(values.width))


def test_a_head_that_is_the_table_too_is_left_alone(tmp_path: Path) -> None:
    with open_model(tiny(tmp_path, "llama_tied_biased")) as file:
        model = build_model(file)
        touched = {n for f in find_folds(model) for n in f.multiplied}
    assert "token_embd.weight" not in touched
    assert touched


def test_awq_never_loses_more_than_rounding_alone(tmp_path: Path) -> None:
    type, encoder = by_name("Q4_0"), Encoder(1)
    with open_model(tiny(tmp_path, "llama")) as file:
        model = build_model(file, 64)
        found = find_folds(model)
        types = {n: type for f in found for n in f.multiplied}
        best = activation_aware(types, encoder)
        gained = []

        def choose(fold, sample, parts):  # type: ignore[no-untyped-def]
            scales = best(fold, sample, parts)
            plain = np.ones(fold.width, np.float32)
            mine = plain if scales is None else scales
            lost = [
                sum(lost_by(encoder, type, w, sample.rows, s[fold.order]) for w in parts.values())
                for s in (mine, plain)
            ]
            assert lost[0] <= lost[1]
            gained.append(lost[1] - lost[0])
            return scales

        windows = windows_of(TOKENS * 16, 64, None, None)
        scales = choose_scales(
            model, WeightSource(file), windows, Sweep(model, 64, 1), found, choose
        )
    assert len(gained) == len(found)
    assert sum(g > 0 for g in gained) == len(scales) > 0


class _Planted:
    """A value of which one column is large."""

    def __init__(self) -> None:
        self.rows = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32)
        self.rows[:, 5] *= 100
        self.most = np.abs(self.rows).max(axis=0)


def planted() -> tuple[Fold, dict[str, np.ndarray]]:
    w = np.random.default_rng(5).standard_normal((32, 64)).astype(np.float32)
    return Fold(0, "x", 64, (), ("w",), np.arange(64)), {"w": w}


def test_awq_keeps_what_meets_a_large_column() -> None:
    sample, (fold, parts) = _Planted(), planted()
    type, encoder = by_name("Q4_0"), Encoder(1)
    scales = activation_aware({"w": type}, encoder)(fold, sample, parts)  # type: ignore[arg-type]
    assert scales is not None
    assert scales.argmax() == 5
    plain = lost_by(encoder, type, parts["w"], sample.rows, np.ones(64, np.float32))
    assert lost_by(encoder, type, parts["w"], sample.rows, scales) < 0.9 * plain


def test_smoothing_makes_columns_even() -> None:
    sample, (fold, parts) = _Planted(), planted()
    scales = smoothing(0.5)(fold, sample, parts)  # type: ignore[arg-type]
    assert scales is not None
    after = sample.most / scales
    assert after.max() / np.median(after) < 0.2 * sample.most.max() / np.median(sample.most)


def test_importance_follows_the_scales() -> None:
    fold, _ = planted()
    matrix = ImportanceMatrix({"w": Squares(np.full((1, 64), 8.0, np.float32), np.ones(1))})  # type: ignore[arg-type]
    scales = np.full(64, 2, np.float32)
    assert (divide_importance(matrix, {0: scales}, [fold]).entries["w"].sums == 2).all()


TURNED = ("llama", "llama_tied_biased", "qwen2", "qwen3", "granite", "phi3_short")


@pytest.mark.parametrize("family", TURNED)
def test_logits_stay_with_the_stream_turned(family: str, tmp_path: Path) -> None:
    with open_model(tiny(tmp_path, family)) as file:
        source, turn = source_of(file), find_turn(build_model(file))
        made = Turned(file, source, turn)
        assert turn.head_of_table == ("output.weight" not in file.tensors)
        for name in turn.gains:
            assert (made.read(name).view(np.float32) == 1).all()
        before, after = Forward(file).logits(TOKENS), Forward(made).logits(TOKENS)
        # In pieces as whole.
        name = sorted(turn.writes)[0]
        rows = [made.read(name, (i, i + 1)) for i in range(made.tensors[name].shape[0])]
        assert np.array_equal(np.concatenate(rows), made.read(name))
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()


def test_making_rows_takes_what_is_said(tmp_path: Path) -> None:
    """Of a matrix of 4 MB: rows are made some at a time, so that a budget can be kept."""
    rng, shape, type = np.random.default_rng(6), (2048, 512), by_name("F32")
    w = rng.standard_normal(shape).astype(np.float32)
    gain = rng.standard_normal(512).astype(np.float32)
    tensors = {
        "w": SourceTensor("w", shape, type, lambda a, b: w[a:b].reshape(-1).view(np.uint8)),
        "g": SourceTensor("g", (512,), type, lambda a, b: gain.view(np.uint8)),
    }
    source = Source({}, {}, tensors, "", lambda: None)
    rows = np.ones(2048, np.float32)
    with open_model(tiny(tmp_path, "llama")) as file:
        for made in (
            Folded(file, source, {"w": Change(rows, gain)}),
            Turned(file, source, Turn(reads={"w": "g"}, gains={"g"})),
            Turned(file, source, Turn(writes={"w"})),
        ):
            tracemalloc.start()
            try:
                raw = made.matrix_rows("w", 0, 2048)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < raw.nbytes + made.held("w")
            assert made.held("w") < 5 * w.nbytes + (8 << 20)


def test_what_tensors_hold_is_not_there_of_two_at_once(tmp_path: Path) -> None:
    """A budget counts the largest: reading ahead does not go on to the next one."""
    made: list[weakref.ref[Any]] = []
    beside: list[int] = []
    last: list[tuple[str, np.ndarray]] = []

    def rows(name: str, first: int, end: int) -> np.ndarray:
        if not last or last[0][0] != name:
            last.clear()
            beside.append(sum(whole() is not None for whole in made))
            last.append((name, np.ones((32, 64), np.float32)))
            made.append(weakref.ref(last[0][1]))
        return last[0][1][first:end].view(np.uint8).reshape(-1)

    type, names = by_name("F32"), [f"blk.{i}.ffn_up.weight" for i in range(4)]
    tensors = {n: SourceTensor(n, (32, 64), type, partial(rows, n), held=1 << 13) for n in names}
    source = Source({}, {"general.architecture": "llama"}, tensors, "", lambda: None)
    quantise(source, tmp_path / "o.gguf", dict.fromkeys(names, by_name("Q8_0")), file_type=7)
    assert beside == [0] * 4


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "olmo2"])
def test_a_stream_that_does_not_turn_is_refused(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("quantize", tiny(tmp_path, family), tmp_path / "o.gguf", "--fold", "hadamard", "-q")
    assert main([str(a) for a in args]) == 2
    assert "cannot be turned" in capsys.readouterr().err


@pytest.mark.parametrize("width", [1, 8, 24, 576])
def test_turning_keeps_lengths_and_angles(width: int) -> None:
    q = turned(np.eye(width))
    assert np.allclose(q @ q.T, np.eye(width), atol=1e-12)
    if width > 8:
        # No direction stays where it was.
        assert np.abs(q).max() < 0.8


@pytest.mark.parametrize("fold", ["awq", "smoothquant", "hadamard"])
def test_the_command_writes_a_file_that_answers_as_before(
    fold: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(tmp_path, "llama")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog again. " * 30)
    common = ("--fold", fold, "-q")
    matrix = ("--imatrix", tmp_path / "text.txt") if fold == "hadamard" else ()
    args = ("quantize", model, tmp_path / "o.gguf", *common, *matrix)
    assert main([str(a) for a in args]) == 2
    assert "--calibration" in capsys.readouterr().err
    common += ("--calibration", tmp_path / "text.txt", "-c", 64, "--chunks", 4)
    outs = []
    for threads in (1, 2):
        out = tmp_path / f"{threads}.gguf"
        args = ("quantize", model, out, "--type", "F16", "-t", threads, *common)
        assert main([str(a) for a in args]) == 0
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]
    with open_model(model) as a, open_model(out) as b:
        assert {n: i.shape for n, i in a.tensors.items()} == {
            n: i.shape for n, i in b.tensors.items()
        }
        before, after = Forward(a).logits(TOKENS), Forward(b).logits(TOKENS)
    assert np.abs(after - before).max() < 5e-3 * np.abs(before).max()
    for wish in (("--type", "Q4_0"), ("--bpw", 5)):
        args = ("quantize", model, tmp_path / f"{wish[1]}.gguf", *wish, *common)
        assert main([str(a) for a in args]) == 0
