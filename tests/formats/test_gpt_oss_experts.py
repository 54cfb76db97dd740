"""Experts of gpt-oss, whose gates and ups lie in turn: what is presented, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import open_model
from strata.formats.errors import ForeignFormatError
from strata.formats.safetensors_writer import write_safetensors
from strata.formats.writing import TensorSource
from strata.quant import by_name, dequantize

NAME = "model.layers.0.mlp.experts."
KINDS = {"uint8": "U8", "float32": "F32"}
COUNT, ROWS, WIDTH = 3, 8, 64
LEVELS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


def directory(path: Path, arrays: dict[str, np.ndarray[Any, Any]], **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", **config}))
    tensors = [
        TensorSource.of(name, a.shape, by_name(KINDS[a.dtype.name]), a)
        for name, a in arrays.items()
    ]
    write_safetensors(path / "model.safetensors", tensors)
    return path


def test_blocks_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (COUNT, ROWS, WIDTH // 32, 16), np.uint8)
    scales = rng.integers(120, 130, blocks.shape[:3], np.uint8)
    bias = rng.standard_normal((COUNT, ROWS)).astype(np.float32)
    arrays = {"gate_up_proj_blocks": blocks, "gate_up_proj_scales": scales}
    arrays |= {"gate_up_proj_bias": bias}
    stored = directory(
        tmp_path / "m",
        {NAME + key: array for key, array in arrays.items()},
        quantization_config={"quant_method": "mxfp4"},
    )
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(COUNT, ROWS, WIDTH)
    numbers = np.array(LEVELS)[codes] * np.repeat(2.0 ** (scales.astype(int) - 127), 32, -1)
    with open_model(stored) as file:
        assert set(file.tensors) == {
            f"{NAME}{part}_proj{kind}" for part in ("gate", "up") for kind in ("", "_bias")
        }
        file.repack(tmp_path / "repacked")
        for start, part in enumerate(("gate", "up")):
            info = file.tensors[f"{NAME}{part}_proj"]
            found = dequantize(info.type, file.read(info.name), info.shape)
            np.testing.assert_array_equal(found, numbers[:, start::2])
            there = file.stored(info.name)
            kept = np.frombuffer(there.file.read(there.offset, info.nbytes), np.uint8)
            np.testing.assert_array_equal(kept, file.read(info.name))
            last = file.read(info.name, (1, 3))
            np.testing.assert_array_equal(last, kept.reshape(COUNT, -1)[1:].reshape(-1))
            one = file.read(f"{NAME}{part}_proj_bias").view(np.float32)
            np.testing.assert_array_equal(one.reshape(COUNT, -1), bias[:, start::2])


def test_floats_are_turned(tmp_path: Path) -> None:
    whole = np.random.default_rng(1).standard_normal((COUNT, WIDTH, ROWS)).astype(np.float32)
    arrays = {f"{NAME}gate_up_proj": whole, f"{NAME}down_proj": whole}
    with open_model(directory(tmp_path, arrays, quantization_config=None)) as file:
        for name, rows in (("gate", slice(0, None, 2)), ("up", slice(1, None, 2))):
            found = file.read(f"{NAME}{name}_proj").view(np.float32).reshape(COUNT, -1, WIDTH)
            np.testing.assert_array_equal(found, whole.swapaxes(1, 2)[:, rows])
        found = file.read(f"{NAME}down_proj").view(np.float32).reshape(COUNT, ROWS, WIDTH)
        np.testing.assert_array_equal(found, whole.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"down_proj_blocks": ((3, 8, 2, 16), np.uint8)}, "down_proj_scales"),
        ({"down_proj_blocks": ((3, 8, 2, 8), np.uint8)}, "down_proj_blocks"),
        ({"down_proj_blocks": ((3, 8, 16), np.uint8)}, "down_proj_blocks"),
        ({"gate_up_proj": ((8, 64), np.float32)}, "gate_up_proj"),
        ({"gate_up_proj": ((3, 64, 8), np.uint8)}, "gate_up_proj"),
        ({"gate_up_proj_bias": ((24,), np.float32)}, "gate_up_proj_bias"),
        (
            {
                "down_proj_blocks": ((3, 8, 2, 16), np.uint8),
                "down_proj_scales": ((3, 8, 1), np.uint8),
            },
            "down_proj_scales",
        ),
    ],
)
def test_other_shapes_and_types_are_refused_by_name(
    arrays: dict[str, tuple[tuple[int, ...], Any]], named: str, tmp_path: Path
) -> None:
    made = {NAME + key: np.zeros(shape, kind) for key, (shape, kind) in arrays.items()}
    with pytest.raises(ForeignFormatError, match=named):
        open_model(directory(tmp_path, made))
