"""A model in a format that is studied, as the file of `strata.formats.research`.

The matrices of layers are kept in it, each by the second moments of what it is multiplied with
where there is a text, in a model of which everything before it is rounded already; all other
tensors stay as they are. Encoders are numpy and everything that was encoded is in memory until the
end: it is for small models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.formats.gguf_writer import gguf_header
from strata.formats.research import FORMAT, HEADER
from strata.formats.safetensors_writer import write_safetensors
from strata.formats.writing import TensorSource
from strata.models import build_model
from strata.program import Model, Weight
from strata.quant import by_name, dequantize, research
from strata.quantizer.compensate import Moments
from strata.quantizer.lab import Calibration
from strata.quantizer.quantise import Written
from strata.quantizer.sources import Source, SourceTensor
from strata.quantizer.sweeps import Floats, Seen, Sweep, matrices, windows_of
from strata.records import dataclass

Progress = Callable[[str, int, int | None], None]
LABEL = "encoding"
_STORED = ("F32", "F16", "BF16")


@dataclass
class _Coded:
    """What tensors have become: their settings, and their parts."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, research.Arrays] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(a.nbytes for parts in self.arrays.values() for a in parts.values())


def write_research(
    file: ModelFile,
    source: Source,
    out: Path,
    name: str,
    calibration: Calibration | None,
    threads: int,
    progress: Progress | None = None,
) -> Written:
    """Write ``out`` with the matrices of layers in the format ``name``. Raises UsageError where no
    matrix can be, DiskFullError or WriteError."""
    if name not in research.FORMATS:
        known = ", ".join(research.FORMATS)
        raise UsageError(f"--format {shown(name)}: there are {known}")
    for tensor in source.tensors.values():
        if tensor.type.name not in _STORED:
            raise UsageError(
                f"tensor {shown(tensor.name)} is {tensor.type.name}: formats that are studied are "
                "made of floats; give the model as F16 or BF16"
            )
    model = build_model(file, None if calibration is None else calibration.context)
    mine = _codable(model, source, research.FORMATS[name])
    if not mine:
        raise UsageError(f"no matrix of this model has sizes that {name} keeps")
    coded = _Coded()
    if calibration is None:
        for number, tensor in enumerate(mine.values()):
            _tell(progress, number, len(mine))
            _encode(coded, name, tensor, np.eye(tensor.matrix[1]))
    else:
        _by_text(coded, name, model, WeightSource(file), mine, calibration, threads, progress)
    others = [t for n, t in source.tensors.items() if n not in mine]
    header = gguf_header(source.values, [])
    raw = np.frombuffer(header, np.uint8)
    tensors = [TensorSource.of(HEADER, (len(raw),), by_name("U8"), raw)]
    tensors += [TensorSource(t.name, t.shape, t.type, partial(_whole, t)) for t in others]
    for weight, parts in coded.arrays.items():
        kinds = research.FORMATS[name].parts(coded.settings[weight], *mine[weight].matrix)
        tensors += [
            TensorSource.of(f"{weight}:{part}", a.shape, by_name(kinds[part][0]), a)
            for part, a in parts.items()
        ]
    notes = {"format": FORMAT, "weights": json.dumps(coded.settings)}
    write_safetensors(out, tensors, notes=notes)
    source.forget()
    counts = {name: len(mine)}
    for tensor in others:
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    stored = sum(t.type.tensor_nbytes(t.shape) for t in others)
    parameters = sum(t.matrix[0] * t.matrix[1] for t in source.tensors.values())
    return Written(coded.nbytes + stored, parameters, counts)


def _codable(model: Model, source: Source, format: research.Format) -> dict[str, SourceTensor]:
    """Matrices of layers that the format takes, each read whole and by one Weight alone."""
    found: dict[str, SourceTensor] = {}
    read = Counter(w.source for s in model.segments for w in s.weights)
    for segment in model.segments:
        multiplied = set(matrices(segment))
        for weight in segment.weights:
            tensor = source.tensors.get(weight.source)
            if tensor is None or not weight.source.startswith("blk.") or len(tensor.shape) != 2:
                continue
            alone = read[weight.source] == 1 and weight.name in multiplied
            if alone and _whole_weight(weight) and format.takes(*tensor.matrix):
                found[weight.source] = tensor
    return found


def _whole_weight(weight: Weight) -> bool:
    return weight.rows is None and weight.each is None and weight.transform == "none"


def _by_text(
    coded: _Coded,
    name: str,
    model: Model,
    weights: WeightSource,
    mine: Mapping[str, SourceTensor],
    c: Calibration,
    threads: int,
    progress: Progress | None,
) -> None:
    """Segment by Segment: what comes to its matrices, then the matrices, then what they make."""
    windows = windows_of(c.tokens, c.context, c.chunks, c.bos)
    sweep = Sweep(model, c.context, threads)
    done = 0
    for number, segment in enumerate(model.segments):
        floats = {w.name: weights.floats(w) for w in segment.weights}
        here = {w.name: w.source for w in segment.weights if w.source in mine}
        if here:
            moments: dict[str, Moments] = {}
            value_of: dict[str, str] = {}
            see = partial(_watcher, set(here), moments, value_of)
            sweep.through(segment, floats, windows, see, keep=False)
            for weight, tensor in here.items():
                _tell(progress, done, len(mine))
                hessian = moments[value_of[weight]].total()
                floats[weight] = _encode(coded, name, mine[tensor], hessian)
                done += 1
        if number + 1 < len(model.segments):
            sweep.through(segment, floats, windows)


def _watcher(
    names: set[str], moments: dict[str, Moments], value_of: dict[str, str], window: int
) -> Seen:
    """What adds up the moments of each value once a window."""
    seen: set[str] = set()

    def watch(name: str, matrix: int, value: str, rows: Floats) -> None:
        del matrix
        if name in names:
            value_of[name] = value
            if value not in seen:
                seen.add(value)
                moments.setdefault(value, Moments(rows.shape[1])).add(window, rows, rows)

    return watch


def _encode(coded: _Coded, name: str, tensor: SourceTensor, hessian: NDArray[np.float64]) -> Floats:
    """Keep a matrix; what it is read as."""
    n, k = tensor.matrix
    plain = dequantize(tensor.type, tensor.rows(0, n), (n, k)).astype(np.float64)
    if not np.isfinite(plain).all():
        raise UsageError(f"tensor {shown(tensor.name)} has a number that is not finite")
    settings, arrays = research.encode(name, plain, hessian)
    coded.settings[tensor.name] = {"format": name, "shape": [n, k], **settings}
    coded.arrays[tensor.name] = arrays
    return research.FORMATS[name].rows(settings, arrays, (n, k), 0, n)


def _whole(tensor: SourceTensor) -> list[NDArray[np.uint8]]:
    return [tensor.rows(0, tensor.matrix[0])]


def _tell(progress: Progress | None, number: int, total: int) -> None:
    if progress is not None:
        progress(LABEL, number, total)
