"""Formats that are studied, in files: what was encoded is what is read, run and streamed, and a
hostile file ends in an error of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("strata._native")

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import make_tiny_models
from strata.errors import StrataError
from strata.formats import errors, open_model
from strata.quant import (
    additive,
    augmented,
    dequantize,
    dynamic_tree,
    int8_outliers,
    kmeans,
    micro_rotation,
    nf4,
    research,
    spqr,
    trellis,
)
from strata.quant.propagation import output_error
from support.command_line import strata
from support.forward import Forward
from support.streaming import logits, settings, units

TOKENS = [3, 14, 15, 92, 65, 35, 89, 79]
N, K = 48, 96
FAST = [n for n in research.FORMATS if n not in ("aqlm", "trellis")]
SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in ("aqlm", "trellis")]


@pytest.fixture(scope="module")
def layer() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((400, K)) @ (np.eye(K) + 0.4 * rng.standard_normal((K, K)) / K**0.5)
    return rng.standard_normal((N, K)) * 0.05, x.T @ x


def _decoded(name: str, weights: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """What the format's own module encodes and decodes."""
    if name == "nf4":
        return nf4.decode(nf4.encode(weights.astype(np.float32))).reshape(N, K)
    if name == "dynamic-tree":
        codes, scales = dynamic_tree.encode(weights.astype(np.float32))
        return dynamic_tree.decode(codes, scales).reshape(N, K)
    if name == "squeezellm":
        return kmeans.decode(kmeans.encode(weights, np.tile(np.diag(hessian), (N, 1))))
    if name == "spqr":
        return spqr.decode(spqr.encode(weights, hessian))
    if name == "aqlm":
        return additive.decode(additive.encode(weights, hessian, 2, 6, rounds=1))
    if name == "trellis":
        return trellis.decode(trellis.encode(weights, hessian, 2, 8))
    if name == "llm-int8":
        return int8_outliers.decode(int8_outliers.encode(weights.astype(np.float32), hessian))
    if name == "arcquant":
        return augmented.decode(augmented.encode(weights, hessian))
    format = {"mxfp4-rotated": micro_rotation.MXFP4, "nvfp4-rotated": micro_rotation.NVFP4}[name]
    found = micro_rotation.encode(weights, hessian, format, rotated=True)
    return found @ micro_rotation.rotation(K, format.group).T


@pytest.mark.parametrize("name", FAST + SLOW)
def test_parts_of_a_file_are_what_the_format_itself_decodes(
    name: str, layer: tuple[np.ndarray, np.ndarray]
) -> None:
    weights, hessian = layer
    format = research.FORMATS[name]
    kept, arrays = research.encode(name, weights, hessian)
    kinds = format.parts(kept, N, K)
    assert {part: a.shape for part, a in arrays.items()} == {p: s for p, (_, s) in kinds.items()}
    whole = format.rows(kept, arrays, (N, K), 0, N)
    wanted = _decoded(name, weights, hessian)
    if name.endswith("-rotated"):
        np.testing.assert_allclose(whole, wanted, atol=1e-7)
    else:
        assert np.array_equal(whole, wanted.astype(np.float32))
    assert np.array_equal(format.rows(kept, arrays, (N, K), 5, 39), whole[5:39])
    # Floating-point parts come as float32 from a file.
    wide = {p: a.astype(np.float32) if a.dtype.kind == "f" else a for p, a in arrays.items()}
    assert np.array_equal(format.rows(kept, wide, (N, K), 0, N), whole)
    assert output_error(weights, whole, hessian) < 0.2 * output_error(
        weights, np.zeros((N, K)), hessian
    )


@pytest.mark.parametrize("name", FAST + SLOW)
def test_a_matrix_to_which_a_text_brings_zeros_alone_is_kept_all_the_same(
    name: str, layer: tuple[np.ndarray, np.ndarray]
) -> None:
    kept, arrays = research.encode(name, layer[0], np.zeros((K, K)))
    whole = research.FORMATS[name].rows(kept, arrays, (N, K), 0, N)
    assert np.square(whole - layer[0]).sum() < 0.2 * np.square(layer[0]).sum()


def _with_large_columns(layer: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The layer, and moments of inputs of which two columns are 40 times as large."""
    size = np.ones(K)
    size[[7, 90]] = 40
    return layer[0], layer[1] * np.outer(size, size)


def test_decomposed_rows_are_those_of_the_plain_product(
    layer: tuple[np.ndarray, np.ndarray],
) -> None:
    weights, hessian = _with_large_columns(layer)
    weights = weights.astype(np.float32)
    weights[:, 7] *= 30
    kept, arrays = research.encode("llm-int8", weights, hessian)
    assert arrays["columns"].tolist() == [7, 90]
    naive = np.empty_like(weights)
    for row, out in zip(weights, naive, strict=True):
        scale = np.float32(max(abs(w) for j, w in enumerate(row) if j not in (7, 90))) / 127
        for j, w in enumerate(row):
            out[j] = np.float16(w) if j in (7, 90) else np.rint(w / scale) * scale
    found = research.FORMATS["llm-int8"].rows(kept, arrays, (N, K), 0, N)
    assert np.array_equal(found, naive)
    # With its scales inputs come to the decomposed product with the same weights.
    x = np.random.default_rng(2).standard_normal((5, K)).astype(np.float32)
    x[:, [7, 90]] *= 40
    assert int8_outliers.outliers(x).tolist() == [j in (7, 90) for j in range(K)]
    product = int8_outliers.decomposed_product(x, weights)
    scale = np.abs(np.delete(x, [7, 90], axis=1)).max(axis=1) / 127
    # Half a step of the inputs, in all columns, and the halves of what is apart.
    bound = 0.5 * scale[:, None] * np.abs(naive).sum(axis=1) + np.abs(x).sum(axis=1)[:, None] * 2e-3
    assert (np.abs(product - x @ found.T) <= bound).all()


def test_augmented_weights_are_one_product_and_lose_less(
    layer: tuple[np.ndarray, np.ndarray],
) -> None:
    weights, hessian = _with_large_columns(layer)
    kept = augmented.encode(weights, hessian)
    assert len(kept.columns) == 16
    assert {7, 90} < set(kept.columns.tolist())
    stored = research.FORMATS["arcquant"].rows(
        *research.encode("arcquant", weights, hessian), (N, K), 0, N
    )
    # One product of K + 16 columns, and in two stages: what is there, and what it lost.
    x = np.random.default_rng(2).standard_normal((5, K)).astype(np.float32)
    wide = np.hstack([x, x[:, kept.columns]]) @ np.hstack([kept.values, kept.lost]).T
    np.testing.assert_allclose(
        wide, x @ kept.values.T + x[:, kept.columns] @ kept.lost.T, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(wide, x @ stored.T, rtol=1e-5, atol=1e-6)
    plain = output_error(weights, kept.values, hessian)
    assert output_error(weights, stored, hessian) < plain / 2
    assert len(augmented.encode(weights, np.eye(K)).columns) == 0


def test_whole_numbers_of_few_bits_come_back() -> None:
    rng = np.random.default_rng(1)
    for width in range(1, 17):
        codes = rng.integers(0, 1 << width, (5, 13))
        raw = research.packed(codes, width)
        assert raw.shape == (5, -(-13 * width // 8))
        assert np.array_equal(research.unpacked(raw, width, 13), codes)


def _run(*words: object) -> tuple[int, str]:
    """The exit code, and what it said."""
    done = strata("quantize", *(str(w) for w in words))
    return done.returncode, done.stdout + done.stderr


def _model(path: Path) -> Path:
    return make_tiny_models.write_gguf(path / "tiny.gguf", make_tiny_models.golden("llama"))


def _text(path: Path) -> Path:
    words = np.random.default_rng(0).integers(97, 123, 700).astype(np.uint8).tobytes().decode()
    (path / "text.txt").write_text(words)
    return path / "text.txt"


@pytest.mark.parametrize(
    "name",
    [
        "nf4",
        *(pytest.param(n, marks=pytest.mark.slow) for n in research.FORMATS if n != "nf4"),
    ],
)
def test_a_file_runs_with_the_values_that_it_stands_for(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.safetensors"
    code, told = _run(_model(tmp_path), out, "--format", name, "-q")
    assert code == 0, told
    assert name in told
    with open_model(out) as file, open_model(tmp_path / "tiny.gguf") as plain:
        assert list(file.metadata) == list(plain.metadata)
        tokens = "tokenizer.ggml.tokens"
        assert file.metadata[tokens] == plain.metadata[tokens]
        assert set(file.tensors) == set(plain.tensors)
        file.repack(tmp_path / "repacked")
        resident = logits(file, None, TOKENS)
        assert np.array_equal(logits(file, settings(units(file)), TOKENS), resident)
        with safe_open(out, "numpy") as stored:
            said = json.loads(stored.metadata()["weights"])
        assert len(said) == 14
        weight = "blk.1.ffn_down.weight"
        raw = file.read(weight)
        place = file.stored(weight)
        assert place.file.read(place.offset, raw.size) == raw.tobytes()
        arrays = {
            k.partition(":")[2]: v for k, v in load_file(out).items() if k.startswith(f"{weight}:")
        }
        n, k = file.tensors[weight].shape
        rows = research.FORMATS[name].rows(said[weight], arrays, (n, k), 0, n)
        assert np.array_equal(dequantize(file.tensors[weight].type, raw, (n, k)), rows)
        apart = np.abs(Forward(file).logits(TOKENS) - Forward(plain).logits(TOKENS)).mean()
        assert 0 < apart < 1


@pytest.mark.slow
def test_by_a_text_outputs_lose_less(tmp_path: Path) -> None:
    model, text = _model(tmp_path), _text(tmp_path)
    files = {}
    for words in ([], ["--calibration", text, "-c", 64, "--chunks", 8]):
        out = tmp_path / f"{len(words)}.safetensors"
        code, told = _run(model, out, "--format", "spqr", "-q", "-t", 2, *words)
        assert code == 0, told
        files[len(words)] = load_file(out)
    codes = "blk.0.ffn_up.weight:codes"
    assert not np.array_equal(files[0][codes], files[6][codes])
    again = tmp_path / "again.safetensors"
    _run(model, again, "--format", "spqr", "-q", "-t", 1, *words)
    assert again.read_bytes() == (tmp_path / "6.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "nf5"], "there are nf4, "),
        (["--format", "nf4", "--memory", "1GB"], "--memory and --format do not go together"),
        (["--format", "nf4", "--bpw", "4"], "both say what to write"),
        (["--format", "nf4", "--type", "Q4_0"], "both say what to write"),
    ],
)
def test_what_does_not_go_with_a_format_is_said(
    tmp_path: Path, words: list[str], said: str
) -> None:
    out = tmp_path / "out.safetensors"
    code, told = _run(_model(tmp_path), out, *words)
    assert code != 0
    assert said in told
    assert not out.exists()


ODD: list[Any] = [None, True, -1, 0, 1, 3, 1 << 40, 0.5, "", "x", [], [1], {}, [1 << 40, 2], [2, 2]]


def _save(path: Path, tensors: dict[str, Any], weights: Any) -> None:
    text = weights if isinstance(weights, str) else json.dumps(weights)
    save_file(tensors, path, {"format": "strata-1", "weights": text})


@pytest.mark.slow
@pytest.mark.parametrize("name", research.FORMATS)
def test_odd_files_are_errors_or_harmless(tmp_path: Path, name: str) -> None:
    """Every setting by every odd value, every part in another shape, of other numbers, or missing:
    an error of Strata's, or a file of which all can be read."""
    out = tmp_path / "out.safetensors"
    assert _run(_model(tmp_path), out, "--format", name, "-q")[0] == 0
    tensors = load_file(out)
    with safe_open(out, "numpy") as stored:
        said = json.loads(stored.metadata()["weights"])
    weight = "blk.0.ffn_down.weight"
    refused = 0

    def refuses() -> int:
        try:
            with open_model(out) as file:
                file.read(weight)
                file.repack(tmp_path / "repacked")
        except StrataError as error:
            return 1 if "\n" not in str(error) else -1000
        return 0

    for odd in ODD:
        for key in said[weight]:
            _save(out, tensors, {**said, weight: {**said[weight], key: odd}})
            refused += refuses()
        _save(out, tensors, {**said, weight: odd})
        refused += refuses()
    rng = np.random.default_rng(0)
    for part in [t for t in tensors if t.startswith(f"{weight}:")]:
        array = tensors[part]
        drawn = rng.integers(0, 256, array.nbytes).astype(np.uint8).view(array.dtype)
        others = [array[:0], array.reshape(-1), array[None], drawn.reshape(array.shape), None]
        for other in others:
            changed = {t: a for t, a in tensors.items() if t != part}
            if other is not None:
                changed[part] = np.ascontiguousarray(other)
            _save(out, changed, said)
            refused += refuses()
    assert refused > 20


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert _run(_model(tmp_path), out, "--format", "dynamic-tree", "-q")[0] == 0
    tensors = load_file(out)
    with safe_open(out, "numpy") as stored:
        said = json.loads(stored.metadata()["weights"])
    save_file(tensors, out, {"format": "pt"})
    with pytest.raises(errors.UnknownFormatError, match="give its directory"):
        open_model(out)
    for weights in ("[]", "{", '{"a": 1}'):
        _save(out, tensors, weights)
        with pytest.raises(errors.FormatError):
            open_model(out)
    for header in (np.zeros(0, np.uint8), tensors["gguf"][:-9], tensors["gguf"][::-1]):
        _save(out, {**tensors, "gguf": np.ascontiguousarray(header)}, said)
        with pytest.raises(errors.FormatError):
            open_model(out)
    _save(out, {t: a for t, a in tensors.items() if t != "gguf"}, said)
    with pytest.raises(errors.ForeignFormatError, match="'gguf' is missing"):
        open_model(out)
    # A quantised model is not quantised once more.
    _save(out, tensors, said)
    code, told = _run(out, tmp_path / "again.gguf")
    assert code != 0
    assert "give its floats" in told
