"""The model files that record_bits.py runs: written once, so that two commits read the same bytes.

Below the directory: ``families`` (every tiny model of make_tiny_models.py, as GGUF and as a Hugging
Face directory), ``shapes`` (`strata synth`: wider ones with windows and long contexts), ``recipes``
(one shape in every quantisation of `strata synth`), ``formats`` (one shape with all its matrices in
one block format; 8-bit floats, which GGUF does not have, in directories) and ``streamed``. Formats
without an encoder get random bytes under scales that keep a product's size.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import make_tiny_models

TINY_SHAPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
FORMATS = (
    *("F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("TQ1_0", "TQ2_0", "Q1_0", "Q2_0"),
)
FP8_SCALES = ("square", "row", "whole")
STREAMED = "smollm2-360m"

_SCALE_FIRST = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "Q1_0", "Q2_0")

Bytes = NDArray[np.uint8]


def write_all(target: Path) -> None:
    """Write every file, unless ``target`` is there; it comes to be when it is whole."""
    if target.exists():
        return
    directory = target.with_name(f"{target.name}.partial")
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("families", "shapes", "recipes", "formats", "streamed"):
        (directory / name).mkdir(parents=True)
    for name in make_tiny_models.names():
        golden = make_tiny_models.golden(name)
        make_tiny_models.write_directory(directory / "families" / name, golden)
        if golden.architecture is not None:
            make_tiny_models.write_gguf(directory / "families" / f"{name}.gguf", golden)
    for family in TINY_SHAPES:
        shape, folder = f"tiny-{family}", directory / "shapes"
        _synth(shape, folder / f"{family}.gguf", "--quant", "Q4_K_M")
        _synth(shape, folder / family, "--format", "safetensors")
    for recipe in _recipes():
        _synth("tiny-llama", directory / "recipes" / f"{recipe}.gguf", "--quant", recipe)
    _write_formats(directory)
    _synth(STREAMED, directory / "streamed" / f"{STREAMED}.gguf", "--quant", "Q4_K_M")
    directory.rename(target)


def _strata(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "strata", *(str(a) for a in arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _synth(shape: str, out: Path, *options: str) -> None:
    _strata("synth", shape, out, *options)


def _recipes() -> list[str]:
    found: list[str] = _strata("synth", "--list")["quantisations"]
    return found


def _write_formats(directory: Path) -> None:
    """tiny-llama anew in each format, from its float32 file and its bf16 directory."""
    from strata.formats import open_model
    from strata.formats.gguf_writer import TensorSource, write_gguf
    from strata.formats.safetensors_writer import write_safetensors
    from strata.quant import by_name, dequantize

    def source(name: str, type: str, shape: tuple[int, ...], raw: Bytes) -> TensorSource:
        return TensorSource(name, shape, by_name(type), partial(_once, raw))

    with open_model(directory / "recipes" / "F32.gguf") as file:
        metadata = {k: v for k, v in file.metadata.items() if k != "general.file_type"}
        for format in FORMATS:
            sources = []
            for number, info in enumerate(file.tensors.values()):
                values = dequantize(info.type, file.read(info.name), info.shape)
                type = format if values.ndim == 2 else "F32"
                raw = _encoded(type, values, seed=number)
                sources.append(source(info.name, type, info.shape, raw))
            write_gguf(directory / "formats" / f"{format}.gguf", metadata, sources)
    origin = directory / "shapes" / "llama"
    with open_model(origin) as file:
        for kind in ("F16", *FP8_SCALES):
            sources = []
            for info in file.tensors.values():
                values = dequantize(info.type, file.read(info.name), info.shape)
                if kind == "F16" or values.ndim < 2 or "embed" in info.name:
                    sources.append(source(info.name, "F16", info.shape, _encoded("F16", values)))
                    continue
                raw, scale = _eight_bits(values, kind)
                sources.append(source(info.name, "F8_E4M3", info.shape, raw))
                raw = scale.view(np.uint8).reshape(-1)
                sources.append(source(f"{info.name}_scale_inv", "F32", scale.shape, raw))
            out = directory / "formats" / (kind if kind == "F16" else f"F8_{kind}")
            skipped = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(origin, out, ignore=skipped)
            write_safetensors(out / "model.safetensors", sources)


def _once(raw: Bytes) -> Iterable[Bytes]:
    return (raw,)


def _encoded(format: str, values: NDArray[np.float32], seed: int = 0) -> Bytes:
    """The bytes of a tensor; random ones of the same spread where there is no encoder."""
    from strata.quant import by_name, dequantize
    from strata.quant.encode import ENCODERS, quantize

    type = by_name(format)
    if format in ENCODERS:
        return quantize(type, values).reshape(-1)
    if format == "F64":
        return values.astype("<f8").reshape(-1).view(np.uint8)
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (values.size // type.elements, type.nbytes), dtype=np.uint8)
    if format == "NVFP4":  # four 8-bit scales; without their upper bits, around 1/64
        raw[:, :4] &= 0x1F
    elif format == "IQ1_M":  # the top nibbles of four words are a half: 2^-7
        raw[:, 49:56:2] = (raw[:, 49:56:2] & 0x0F) | np.array([0x00, 0x00, 0x00, 0x20], np.uint8)
    else:
        assert format in _SCALE_FIRST, f"no way to fill blocks of {format}"
        raw[:, :2] = np.array([1.0], "<f2").view(np.uint8)
        spread = math.sqrt(float(np.square(dequantize(type, raw, values.shape)).mean()))
        wanted = 1 / (spread * math.sqrt(values.shape[-1]))
        raw[:, :2] = np.array([wanted], "<f2").view(np.uint8)
    return raw.reshape(-1)


def _eight_bits(values: NDArray[np.float32], kind: str) -> tuple[Bytes, NDArray[np.float32]]:
    """E4M3 codes of a matrix, and a scale for each 128 x 128 square, each row or the whole."""
    from strata.quant.encode import encode_e4m3

    n, k = values.shape
    size = np.abs(values)
    if kind == "square":
        padded = np.zeros((-(-n // 128) * 128, k), np.float32)
        padded[:n] = size
        scale = padded.reshape(-1, 128, k // 128, 128).max(axis=(1, 3)) / np.float32(448)
        each = np.repeat(np.repeat(scale, 128, axis=0)[:n], 128, axis=1)
    elif kind == "row":
        scale = size.max(axis=1, keepdims=True) / np.float32(448)
        each = np.broadcast_to(scale, (n, k))
    else:
        scale = np.array([size.max() / np.float32(448)], np.float32)
        each = np.broadcast_to(scale, (n, k))
    return encode_e4m3(values / each).reshape(-1), np.ascontiguousarray(scale, np.float32)
