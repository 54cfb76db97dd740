"""Which tensors a model needs, and where each lies in the file: names, shapes, fused parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from strata.formats import ModelFile, TensorInfo
from strata.formats.header_only import Blank, HeaderOnly
from strata.models import text_parts
from strata.models.errors import (
    MissingTensor,
    TensorAxes,
    TensorShape,
    TensorType,
    UnexpectedTensor,
)
from strata.models.keys import real, several_senses
from strata.program import Weight
from strata.program.model import Transform
from strata.quant import dequantize
from strata.records import dataclass


@dataclass(frozen=True)
class Part:
    """Rows ``start ..`` of a tensor of ``total`` rows that fuses several weights. ``row``: a vector
    that is one row of a table."""

    gguf: str
    huggingface: str
    start: int
    total: int
    row: bool = False


@dataclass(frozen=True)
class Tensor:
    """One weight of an architecture; the key it stands under is its canonical (GGUF) name.

    ``huggingface`` is its name there; None where it is always fused there, or does not exist. In
    names ``{i}`` stands for the layer and ``{p}`` for what the checkpoint puts before the names of
    its decoder. ``shape`` is rows first, after ``transform`` (only Hugging Face files need one).
    ``part`` says where it lies if the file fuses it with others; ``apart`` is False where its own
    name in GGUF files is that of the fused tensor. ``unit_axes``: some writers give it axes of one
    entry, others leave them out. A shape of three axes is a matrix for each of several experts;
    with ``{e}`` in it ``huggingface`` names the tensor of each. ``part`` and ``transform`` are then
    of every matrix.
    """

    huggingface: str | None
    shape: tuple[int, ...]
    optional: bool = False
    transform: Transform = "none"
    part: Part | None = None
    apart: bool = True
    unit_axes: bool = False


Tensors = Mapping[str, Tensor]


def on_layers(tensors: Tensors, layers: Iterable[int]) -> dict[str, Tensor]:
    """The tensors of these layers alone, for models whose layers are of several kinds."""

    def at(i: int, tensor: Tensor) -> Tensor:
        part = tensor.part
        if part is not None:
            names = (_at(part.gguf, i), _at(part.huggingface, i))
            part = Part(*names, part.start, part.total, part.row)
        name = tensor.huggingface
        return replace(tensor, huggingface=None if name is None else _at(name, i), part=part)

    return {_at(name, i): at(i, tensor) for i in layers for name, tensor in tensors.items()}


def _at(name: str, i: int) -> str:
    return name.replace("{i}", str(i))


class Wanted(Exception):
    """A family's answer to a Blank: its tensors, layers, and what is put for ``{p}``."""

    def __init__(self, tensors: Tensors, layers: int, prefix: str) -> None:
        super().__init__("this model has no tensors yet")
        self.tensors, self.layers, self.prefix = tensors, layers, prefix


def _names(name: str, tensor: Tensor) -> list[tuple[str, str | None]]:
    """Where it may lie, in GGUF and in Hugging Face files."""
    names = [(name, tensor.huggingface)]
    return [*names, (tensor.part.gguf, tensor.part.huggingface)] if tensor.part else names


class Catalog:
    """The Weights of a model by canonical name, checked against what the file holds.

    Raises MissingTensor, UnexpectedTensor, TensorAxes, TensorShape or TensorType. ``prefixes`` are
    what Hugging Face checkpoints of the family put for ``{p}`` (the one the file uses is found by
    its embedding table), ``harmless`` are patterns of tensors that may be there and are not used.
    Of a model that also sees or hears, all that is not its text part is not used.
    """

    def __init__(
        self,
        file: ModelFile,
        tensors: Tensors,
        layers: int,
        *,
        prefixes: Sequence[str] = ("model.", ""),
        harmless: Iterable[str] = (),
    ) -> None:
        if isinstance(file, Blank):
            raise Wanted(tensors, layers, prefixes[0])
        self._file = file
        table = tensors["token_embd.weight"]
        anchor = table.huggingface or (table.part.huggingface if table.part else "")
        pairs = [(w, w + p) for w in ("", *text_parts.PREFIXES) for p in prefixes]
        found = [pair for pair in pairs if anchor.replace("{p}", pair[1]) in file.tensors]
        self._around, self._prefix = found[0] if found else ("", prefixes[0])
        harmless = [*harmless, *self._other_parts()]
        ignored = re.compile("|".join(f"(?:{p})" for p in harmless) or r"(?!)")
        loose = {
            self._stored(*names, i)
            for name, tensor in tensors.items()
            for i in (range(layers) if "{i}" in name else (0,))
            for names in _names(name, tensor)
            if tensor.unit_axes
        }
        # Before anything is missed: what is missing is often inside them.
        stacked = self._stacked(tensors, layers)
        for name, info in file.tensors.items():
            axes = len(_squeezed(info.shape) if name in loose else info.shape)
            if axes > 2 and name not in stacked and not ignored.fullmatch(name):
                raise TensorAxes(
                    f"tensor '{name}' of shape {list(info.shape)} has {len(info.shape)} axes: "
                    f"experts, convolutions and the like are not understood here; use a model "
                    f"whose weights are matrices and vectors"
                )
        self._weights: dict[str, Weight] = {}
        self._missing: dict[str, str] = {}
        used: set[str] = set()
        for name, tensor in tensors.items():
            for i in range(layers) if "{i}" in name else (0,):
                weight = self._locate(name, tensor, i)
                if weight is not None:
                    self._weights[weight.name] = weight
                    used.update(weight.experts or (weight.source,))
        for name in file.tensors:
            if name not in used and not ignored.fullmatch(name):
                raise UnexpectedTensor(
                    f"tensor '{name}' is not part of this architecture: "
                    f"the file holds more than its {layers} layers need, or is another model"
                )

    @property
    def kind(self) -> str:
        """That of the file: gguf or huggingface."""
        return self._file.kind

    def __call__(self, name: str) -> Weight:
        """The Weight behind a canonical name. Raises MissingTensor for an optional one that is not
        there: who asks for it needs it."""
        if name not in self._weights:
            unknown = f"tensor '{name}' is missing: the file is incomplete or another model"
            raise MissingTensor(self._missing.get(name, unknown))
        return self._weights[name]

    def has(self, name: str) -> bool:
        """Whether the file holds this (optional) weight."""
        return name in self._weights

    def type(self, name: str) -> str:
        """The block type in which the file holds a weight."""
        return self._file.tensors[self(name).source].type.name

    def number(self, stored: str, otherwise: float) -> float:
        """The one number of a directory's tensor, which is no weight but says how an Op computes.

        ``otherwise`` where there is none, and where only the header is known. Raises TensorShape,
        TensorType, or ConfigError for what is no number.
        """
        name = stored.replace("{p}", self._prefix)
        info = self._file.tensors.get(name)
        if info is None:
            return otherwise
        self._check(info, (1,), "none", unit_axes=True)
        if isinstance(self._file, HeaderOnly):
            return otherwise
        value = float(dequantize(info.type, self._file.read(name), (1,))[0])
        return real(name, value, -1e4, 1e4)

    def _stacked(self, tensors: Tensors, layers: int) -> set[str]:
        """Under which names tensors of experts may be found."""
        found: set[str] = set()
        for name, tensor in tensors.items():
            if len(tensor.shape) == 3:
                pairs = _names(name, tensor)
                found.update(self._stored(*pair, i) for pair in pairs for i in range(layers))
        return found

    def _locate(self, name: str, tensor: Tensor, i: int) -> Weight | None:
        canonical = name.replace("{i}", str(i))
        transform = tensor.transform if self._file.kind == "huggingface" else "none"
        part = tensor.part
        stored: list[tuple[str, tuple[int, ...], tuple[int, int] | None]] = []
        if tensor.apart:
            stored.append((self._stored(name, tensor.huggingface, i), tensor.shape, None))
        if part is not None:
            fused = self._stored(part.gguf, part.huggingface, i)
            shape = (1, *tensor.shape) if part.row else tensor.shape
            *outer, count, _ = shape if len(shape) > 1 else (*shape, 1)
            span = (part.start, part.start + count)
            whole = (*outer, part.total, *shape[len(outer) + 1 :])
            stored.append((fused, whole, span))
        for source, shape, rows in stored:
            if "{e}" in source:
                each = tuple(source.replace("{e}", str(e)) for e in range(shape[0]))
                if each[0] in self._file.tensors:
                    return self._apart(canonical, tensor, each, shape[1:], rows)
                continue
            info = self._file.tensors.get(source)
            if info is not None:
                if len(shape) == 3 and self._file.kind == "huggingface" and transform == "none":
                    # Some checkpoints of a family hold their experts turned.
                    turned = tuple(info.shape) == (shape[0], *shape[:0:-1]) != shape
                    transform = "transpose" if turned else transform
                self._check(info, shape, transform, unit_axes=tensor.unit_axes)
                if len(shape) == 3:
                    return Weight(canonical, tensor.shape, source, transform=transform, each=rows)
                return Weight(canonical, tensor.shape, source, rows, transform)
        name = " or ".join(f"'{source}'" for source, _, _ in stored if source)
        message = f"tensor {name} is missing: the file is incomplete or another model"
        if not tensor.optional:
            raise MissingTensor(message)
        self._missing[canonical] = message
        return None

    def _apart(
        self,
        canonical: str,
        tensor: Tensor,
        each: tuple[str, ...],
        shape: tuple[int, ...],
        rows: tuple[int, int] | None,
    ) -> Weight:
        """A weight whose experts are tensors of their own, all of one type."""
        infos = [self._file.tensors.get(source) for source in each]
        for source, info in zip(each, infos, strict=True):
            if info is None:
                raise MissingTensor(
                    f"tensor '{source}' is missing: the file is incomplete or another model"
                )
            self._check(info, shape, "none", unit_axes=tensor.unit_axes)
            if infos[0] is not None and info.type != infos[0].type:
                raise TensorType(
                    f"tensor '{source}' is {info.type.name}, '{each[0]}' is {infos[0].type.name}: "
                    f"experts of one layer are of one type"
                )
        return Weight(canonical, tensor.shape, each[0], each=rows, experts=each)

    def _other_parts(self) -> list[str]:
        """A pattern of the tensors that are not of the text, where there may be some."""
        if not several_senses(self._file):
            return []
        heads = {f"{around}lm_head" for around in ("", *text_parts.PREFIXES)}
        own = "|".join(re.escape(p) for p in (self._prefix, *heads) if p)
        return [rf"(?!{own}).*"]

    def _stored(self, gguf: str, huggingface: str | None, i: int) -> str:
        if self._file.kind == "gguf":
            return gguf.replace("{i}", str(i))
        stored = (huggingface or "").replace("{i}", str(i))
        if stored.startswith("{p}") or not self._around:
            return stored.replace("{p}", self._prefix)
        # What is outside of the decoder may be beside it, or before all of the text part.
        return self._around + stored if self._around + stored in self._file.tensors else stored

    @staticmethod
    def _check(
        info: TensorInfo, shape: tuple[int, ...], transform: Transform, *, unit_axes: bool
    ) -> None:
        if info.type.integer:
            raise TensorType(
                f"tensor '{info.name}' holds whole numbers ({info.type.name}), not weights: its "
                f"quantisation is not known here; use the unquantised model or a GGUF of it"
            )
        expected = (*shape[:-2], *shape[:-3:-1]) if transform == "transpose" else shape
        alike = _squeezed(info.shape) == _squeezed(expected)
        if tuple(info.shape) != expected and not (unit_axes and alike):
            raise TensorShape(
                f"tensor '{info.name}' has shape {list(info.shape)}, but the hyperparameters of "
                f"this file ask for {list(expected)}"
            )


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Without the axes of one entry, which some writers keep and others leave out."""
    return tuple(n for n in shape if n != 1)
