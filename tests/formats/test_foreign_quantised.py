"""Checkpoints that others quantised: the numbers that they stand for, exactly, in the type that the
header promised, resident as streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("strata._native")

from safetensors.numpy import load_file, save_file

from strata.formats import errors, open_model
from strata.models import build_model
from strata.models.errors import ConfigError
from strata.quant import dequantize
from support import foreign_checkpoints as foreign
from support.forward import Forward
from support.streaming import logits, settings, units

USUAL = ("gptq", "gptq-asymmetric", "awq", "w4a16", "nf4", "int8", "hqq", "exl3")


def slow(*schemes: str) -> list[Any]:
    return [pytest.param(scheme, marks=pytest.mark.slow) for scheme in schemes]


TOKENS = [3, 14, 15, 92, 65, 35, 89, 79]


@pytest.mark.parametrize("scheme", [*USUAL, *slow(*(s for s in foreign.SCHEMES if s not in USUAL))])
def test_values_are_those_of_the_packer(tmp_path: Path, scheme: str) -> None:
    quantised, plain, wanted = foreign.write(tmp_path, scheme)
    with open_model(quantised) as file, open_model(plain) as floats:
        assert set(file.tensors) == set(floats.tensors)
        file.repack(tmp_path / "repacked")
        for name, (values, type) in wanted.items():
            info = file.tensors[name]
            assert (info.type.name, info.shape) == (type, values.shape)
            raw = file.read(name)
            assert raw.size == info.nbytes
            np.testing.assert_array_equal(dequantize(info.type, raw, info.shape), values)
            some = file.read(name, (9, 26))
            np.testing.assert_array_equal(
                dequantize(info.type, some, (17, info.shape[1])), values[9:26]
            )
            place = file.stored(name)
            assert place.file.read(place.offset, info.nbytes) == raw.tobytes()


@pytest.mark.parametrize(
    "scheme", ["gptq-asymmetric", *slow("awq", "w4a16", "nf4", "int8", "hqq", "exl3")]
)
def test_logits_are_those_of_the_values_and_streaming_changes_no_bit(
    tmp_path: Path, scheme: str
) -> None:
    quantised, plain, _ = foreign.write(tmp_path, scheme)
    with open_model(quantised) as file, open_model(plain) as floats:
        assert np.array_equal(Forward(file).logits(TOKENS), Forward(floats).logits(TOKENS))
        file.repack(tmp_path / "repacked")
        resident = logits(file, None, TOKENS)
        assert np.array_equal(logits(file, settings(units(file)), TOKENS), resident)


@pytest.mark.slow
def test_exl3_has_a_head_of_its_own_where_the_model_has_none(tmp_path: Path) -> None:
    quantised, plain, _ = foreign.write(tmp_path, "exl3")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with open_model(quantised) as file, open_model(plain) as floats:
        assert np.array_equal(Forward(file).logits(TOKENS), Forward(floats).logits(TOKENS))


def test_what_was_repacked_is_used_again_until_the_files_change(tmp_path: Path) -> None:
    quantised, _, _ = foreign.write(tmp_path, "gptq")
    store = tmp_path / "repacked"
    told: list[tuple[int, int | None]] = []

    def progress(what: str, done: int, total: int | None) -> None:
        told.append((done, total))

    with open_model(quantised) as file:
        file.repack(store, progress)
        assert told[-1][0] == told[-1][1] > 0
    (kept,) = store.iterdir()
    told.clear()
    with open_model(quantised) as file:
        file.repack(store, progress)
        assert not told
    # One that is damaged is made anew, and so is that of other files.
    kept.write_bytes(kept.read_bytes()[:-40])
    with open_model(quantised) as file:
        file.repack(store, progress)
    assert told
    tensors = load_file(quantised / "model.safetensors")
    save_file(tensors, quantised / "model.safetensors")
    with open_model(quantised) as file:
        file.repack(store)
    assert len(list(store.iterdir())) == 2


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    quantised, _, _ = foreign.write(tmp_path, "gptq")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with open_model(quantised) as file, pytest.raises(errors.DiskFullError):
        file.repack(tmp_path / "repacked")
    assert list((tmp_path / "repacked").iterdir()) == []


def _set(**changed: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda config, tensors: config["quantization_config"].update(changed)


def _tensor(
    end: str, change: Callable[[Any], Any]
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        name = next(n for n in tensors if n.endswith(end))
        new = change(tensors.pop(name))
        if new is not None:
            tensors[name] = new

    return edit


@pytest.mark.parametrize(
    ("scheme", "edit", "said"),
    [
        ("gptq", _set(bits=3), "3 bits are not read"),
        ("gptq", _set(bits="four"), "'bits' is 'four'"),
        ("gptq", _set(checkpoint_format="marlin"), "'marlin'"),
        ("gptq", _set(group_size=40), "no whole number of groups of 40"),
        ("gptq", _tensor(".scales", lambda a: None), "is missing"),
        ("gptq", _tensor(".qzeros", lambda a: a[:, :-1].copy()), "has shape"),
        ("gptq", _tensor(".qweight", lambda a: a.astype(np.float32)), "is F32, not I32"),
        ("awq", _set(version="gemv"), "only gemm"),
        ("awq", _set(zero_point=False), "without zero points"),
        ("w4a16", _set(format="nvfp4-pack-quantized"), "'nvfp4-pack-quantized' is not read"),
        ("w4a16", _set(config_groups={}), "'config_groups'"),
        ("nf4", _tensor("__nf4", lambda a: np.frombuffer(b"[[[", np.uint8)), "no JSON object"),
        ("nf4", _tensor(".absmax", lambda a: a[:-1].copy()), "has shape"),
        ("int8", _tensor(".SCB", lambda a: a.astype(np.float16)), "is F16, not F32"),
        (
            "exl3",
            _tensor(".trellis", lambda a: a[:, :, :40].copy()),
            "2.5 bits a weight, which is no",
        ),
        ("exl3", _tensor(".trellis", lambda a: a[:-1].copy()), "not of whole 128"),
        ("exl3", _tensor(".svh", lambda a: None), "is missing"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, scheme: str, edit: Callable[..., None], said: str
) -> None:
    quantised, _, _ = foreign.write(tmp_path, scheme)
    config = json.loads((quantised / "config.json").read_text())
    tensors = load_file(quantised / "model.safetensors")
    edit(config, tensors)
    (quantised / "config.json").write_text(json.dumps(config))
    save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(errors.ForeignFormatError, match=said) as caught:
        open_model(quantised)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "edit", "said"),
    [
        ("gptq", _tensor(".qzeros", lambda a: a + np.int32(1)), "codes go from"),
        ("gptq-act-order", _tensor(".g_idx", lambda a: a + 7), "g_idx names groups"),
        ("w4a16", _tensor("_scale", lambda a: a.astype(np.float32) / 3), None),
    ],
)
def test_values_that_contradict_the_header_are_named(
    tmp_path: Path, scheme: str, edit: Callable[..., None], said: str | None
) -> None:
    quantised, _, _ = foreign.write(tmp_path, scheme)
    tensors = load_file(quantised / "model.safetensors")
    edit({}, tensors)
    save_file(tensors, quantised / "model.safetensors")
    with open_model(quantised) as file:
        if said is None:
            # A scale in float32 is promised in float32.
            file.repack(tmp_path / "repacked")
            return
        with pytest.raises(errors.ForeignFormatError, match=said):
            file.repack(tmp_path / "repacked")
    assert list((tmp_path / "repacked").iterdir()) == []


@pytest.mark.parametrize("method", ["torchao", "aqlm", "quanto"])
def test_other_methods_are_refused_by_name(tmp_path: Path, method: str) -> None:
    plain = foreign.write(tmp_path, "gptq")[1]
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (plain / "config.json").write_text(json.dumps(config))
    with open_model(plain) as file, pytest.raises(ConfigError, match=method):
        build_model(file)


ODD: list[Any] = [None, True, -1, 0, 1, 3, 7, 1 << 40, 0.5, "", "x", [], [1], {}, {"a": []}]


@pytest.mark.parametrize(
    "scheme", slow("gptq", "awq", "w4a16", "w8a8", "nf4", "int8", "hqq", "exl3")
)
def test_odd_settings_and_tensors_are_errors_or_harmless(tmp_path: Path, scheme: str) -> None:
    """Every setting by every odd value, and every part of a weight in another shape or missing:
    FormatError, or a file of which all can be read."""
    quantised, _, wanted = foreign.write(tmp_path, scheme)
    config = json.loads((quantised / "config.json").read_text())
    settings = config["quantization_config"]
    weights = settings.get("config_groups", {}).get("group_0", {}).get("weights")
    refused = 0
    for table in (settings, *([weights] if weights else [])):
        for key, value in [*table.items()]:
            for odd in ODD:
                table[key] = odd
                (quantised / "config.json").write_text(json.dumps(config))
                refused += not _readable(quantised)
            table[key] = value
    (quantised / "config.json").write_text(json.dumps(config))
    tensors = load_file(quantised / "model.safetensors")
    stem = next(iter(wanted)).removesuffix(".weight")
    for name in [n for n in tensors if n.startswith(stem)]:
        array = tensors[name]
        others = [array[:0], array.reshape(-1), array[None], array.astype(np.float64)]
        for other in [*others, None]:
            changed = {n: a for n, a in tensors.items() if n != name}
            if other is not None:
                changed[name] = np.ascontiguousarray(other)
            save_file(changed, quantised / "model.safetensors")
            refused += not _readable(quantised)
    assert refused > 5


def _readable(path: Path) -> bool:
    try:
        with open_model(path) as file:
            for name in file.tensors:
                file.read(name)
    except errors.FormatError:
        return False
    return True
