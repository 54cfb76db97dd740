"""A model, a text and what is wanted: what `strata quantize` and `strata imatrix` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models import build_model
from strata.quant import BlockType, QuantError, by_name
from strata.quantizer.allocate import Choice, allocate
from strata.quantizer.calibrate import importance_of
from strata.quantizer.compensate import Compensation
from strata.quantizer.encoder import Encoder
from strata.quantizer.folding import (
    Folded,
    activation_aware,
    changes_of,
    choose_scales,
    divide_importance,
    find_folds,
    smoothing,
)
from strata.quantizer.importance import ImportanceMatrix
from strata.quantizer.losses import costs_of, group_of, losses_of
from strata.quantizer.mixes import is_quantised
from strata.quantizer.room import calibration_bytes, check_room
from strata.quantizer.sources import Source
from strata.quantizer.sweeps import Sweep, windows_of
from strata.quantizer.turning import HEAD, NotTurnable, Turned, find_turn
from strata.records import dataclass
from strata.text import load_tokenizer

Progress = Callable[[str, int, int | None], None]
STEPS = ("calibrating", "scales", "errors of types", "sensitivity", "error propagation")
"""Labels of progress that counts Segments, tensors or groups, not bytes."""
_PROBED_WINDOWS = 2
_LOGITS_EVERY = 8
_SMOOTHING = 0.5
"""The share of columns' sizes that SmoothQuant gives to the weights."""
_LARGEST_RECIPE = 16 << 20


@dataclass(frozen=True)
class Calibration:
    """A text in tokens, and how much of it is used: windows of ``context`` tokens."""

    tokens: Sequence[int]
    bos: int | None
    context: int
    chunks: int | None
    name: str

    @property
    def identity(self) -> str:
        """A digest of what is used."""
        part = np.array(self.tokens[: self._count], np.int32).tobytes()
        return sha256(part + repr((self.bos, self.context)).encode()).hexdigest()

    @property
    def windows(self) -> int:
        """How many windows there are."""
        whole = len(self.tokens) // self.context
        return whole if self.chunks is None else min(whole, self.chunks)

    @property
    def _count(self) -> int:
        return self.context * self.windows


def read_calibration(
    file: ModelFile, text: str, name: str, context: int, chunks: int | None
) -> Calibration:
    """A text in the model's own tokens; UsageError if it is too short for one window."""
    tokenizer = load_tokenizer(file)
    tokens = tokenizer.encode(text.removesuffix("\n"), add_special=True)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    made = Calibration(tokens, bos, context, chunks, name)
    if len(tokens) < context:
        raise UsageError(f"{name} has {len(tokens)} tokens, fewer than a window of {context}")
    return made


def check_calibration(
    file: ModelFile,
    source: Source,
    calibration: Calibration,
    threads: int,
    memory: int | None,
    *,
    propagated: bool,
    searched: bool,
    distilled: bool = False,
) -> None:
    """UsageError where calibrating, or searching a mix by it, takes more than ``memory``, that of
    the whole process."""
    c = calibration
    if memory is None:
        return
    model = build_model(file, c.context)
    need = calibration_bytes(
        model, c.windows, c.context, threads, propagated=propagated, distilled=distilled
    )
    need += max((t.held for t in source.tensors.values()), default=0)
    if searched:
        names, layers = _searched(source)
        groups: dict[str, int] = {}
        for name in names:
            tensor = source.tensors[name]
            group = group_of(tensor, layers)
            groups[group] = groups.get(group, 0) + 4 * tensor.matrix[0] * tensor.matrix[1]
        need += max(groups.values(), default=0)
    check_room(need, memory)


def _searched(source: Source) -> tuple[list[str], int]:
    """Tensors for which a type is looked for, and in how many layers they are."""
    names = [n for n, t in source.tensors.items() if is_quantised(n, t.shape)]
    layers = 1 + max((int(n.split(".")[1]) for n in names if n.startswith("blk.")), default=0)
    return names, layers


def measure_importance(
    file: ModelFile, calibration: Calibration, threads: int, progress: Progress | None = None
) -> ImportanceMatrix:
    """The importance of all columns by a text."""
    c = calibration
    return importance_of(
        file,
        c.tokens,
        context=c.context,
        chunks=c.chunks,
        bos=c.bos,
        threads=threads,
        dataset=c.name,
        progress=progress,
    )


def turn_stream(file: ModelFile, source: Source) -> ModelFile:
    """The model with its residual stream turned, whose answers are those of ``file``. Raises
    UsageError where an architecture does not allow it."""
    try:
        turn = find_turn(build_model(file))
    except NotTurnable as error:
        raise UsageError(
            f"{file.path.name}: the residual stream of this architecture cannot be turned: {error}"
        ) from None
    made = Turned(file, source, turn)
    if turn.head_of_table and not any(
        w.source == HEAD for w in build_model(made).segments[-1].weights
    ):
        raise UsageError(f"{file.path.name}: this architecture has no head of its own to turn")
    return made


def fold_scales(
    file: ModelFile,
    source: Source,
    kind: str,
    types: Mapping[str, BlockType],
    importance: ImportanceMatrix | None,
    calibration: Calibration,
    threads: int,
    progress: Progress | None = None,
) -> tuple[ModelFile, ImportanceMatrix | None]:
    """The model with scales moved, and the importance of its columns: with the ``kind`` ``awq`` so
    that what becomes ``types`` loses less, with ``smoothquant`` so that activations are more even.
    Its answers are those of ``file``. Raises UsageError where no scale can be moved."""
    c = calibration
    model = build_model(file, c.context)
    found = find_folds(model)
    if not found:
        raise UsageError(f"{file.path.name}: no scales can be moved in this architecture")
    choose = (
        smoothing(_SMOOTHING)
        if kind == "smoothquant"
        else activation_aware(types, Encoder(threads))
    )
    scales = choose_scales(
        model,
        WeightSource(file),
        windows_of(c.tokens, c.context, c.chunks, c.bos),
        Sweep(model, c.context, threads),
        found,
        choose,
        progress,
    )
    folded = Folded(file, source, changes_of(source, scales, found))
    if importance is not None:
        importance = divide_importance(importance, scales, found)
    return folded, importance


def compensation_of(
    file: ModelFile,
    source: Source,
    types: Mapping[str, BlockType],
    calibration: Calibration,
    threads: int,
    progress: Progress | None = None,
    *,
    distilled: int = 0,
) -> Compensation:
    """Error propagation with the moments of a text, and so many steps of distilling each layer."""
    c = calibration
    model = build_model(file, c.context)
    return Compensation(
        source,
        model,
        WeightSource(file),
        windows_of(c.tokens, c.context, c.chunks, c.bos),
        Sweep(model, c.context, threads),
        types,
        Encoder(threads),
        c.identity,
        progress,
        distilled=distilled,
    )


def measured_mix(
    file: ModelFile,
    source: Source,
    *,
    importance: ImportanceMatrix | None,
    calibration: Calibration | None,
    threads: int,
    progress: Progress | None = None,
) -> Callable[[int], dict[str, Choice]]:
    """What gives the mix with the least loss whose tensors, all of the model's, take so many bytes
    at most. Raises NoRoom where none is so small."""
    names, layers = _searched(source)
    fixed = sum(t.type.tensor_nbytes(t.shape) for n, t in source.tensors.items() if n not in names)
    encoder = Encoder(threads)
    costs: dict[str, float] = {}
    if calibration is not None:
        c = calibration
        model = build_model(file, c.context)
        count = _PROBED_WINDOWS if c.chunks is None else min(c.chunks, _PROBED_WINDOWS)
        costs = costs_of(
            source,
            model,
            WeightSource(file),
            windows_of(c.tokens, c.context, count, c.bos),
            Sweep(model, c.context, threads, _LOGITS_EVERY),
            names,
            encoder,
            importance,
            layers,
            progress,
        )
    losses = losses_of(source, names, encoder, importance, costs, layers, progress)

    def mix(nbytes: int) -> dict[str, Choice]:
        chosen = allocate([losses.choices[n] for n in names], nbytes - fixed)
        return dict(zip(names, chosen, strict=True))

    return mix


def write_recipe(path: Path, mix: Mapping[str, Choice]) -> None:
    """A table of tensors, types, bytes and losses, which ``read_recipe`` reads."""
    width = max(map(len, mix), default=0)
    lines = ["# tensor  type  bytes  expected loss (nats a token, where it was measured)"]
    for name, choice in mix.items():
        lines.append(f"{name:{width}}  {choice.label:8} {choice.nbytes:12}  {choice.loss:.3e}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_recipe(path: Path) -> dict[str, BlockType]:
    """Types by tensor name from such a table; only the first two columns count. UsageError for
    what is none."""
    if path.stat().st_size > _LARGEST_RECIPE:
        raise UsageError(f"{path} is too large to be a table of types")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    types = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) < 2:
            raise UsageError(f"{path}: line {number} is not 'TENSOR TYPE'")
        try:
            types[words[0]] = by_name(words[1].upper())
        except QuantError:
            raise UsageError(
                f"{path}: line {number}: there is no block format {shown(words[1])}"
            ) from None
    return types
