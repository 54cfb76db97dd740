"""A Model that gives embeddings of its tokens instead of logits, and how those of a text become
one: ``<architecture>.pooling_type`` of GGUF, ``1_Pooling/config.json`` of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from strata.formats import ModelFile
from strata.formats.side_files import read_object
from strata.models.errors import ConfigError
from strata.models.keys import Keys, architecture
from strata.program import Model, Program, Segment

Pooling = Literal["mean", "first", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "first", "last")

_RANKS = 4
_GGUF: Mapping[int, Pooling | None] = {0: None, 1: "mean", 2: "first", 3: "last", _RANKS: "first"}
_MODES: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


def embedding_model(model: Model) -> Model:
    """The Model without its head: the last Segment gives what the head would multiply, which is the
    last norm of the selected rows. One that embeds as it is stays so."""
    if model.embeds:
        return model
    *body, head = model.segments
    ops = head.program.ops
    # A family may have products before it, as OPT's narrow embedding.
    last = max(i for i, op in enumerate(ops) if op.kind == "matmul")
    used = {name for op in ops[:last] for name in (*op.inputs, op.output)}
    program = Program(
        ops[:last],
        {name: value for name, value in head.program.values.items() if name in used},
        head.program.inputs,
        (ops[last].inputs[0],),
    )
    segment = Segment(
        head.name,
        program,
        tuple(w for w in head.weights if w.name in used),
        ("embedding",),
        {name: unit for name, unit in head.unit_of.items() if name in used},
    )
    return replace(model, segments=(*body, segment))


def ranks(file: ModelFile) -> bool:
    """Whether a GGUF file says that it scores pairs of texts."""
    return file.kind == "gguf" and _stated(file) == _RANKS


def read_pooling(file: ModelFile) -> Pooling | None:
    """How a file says that the embeddings of a text's tokens become one; None if it does not."""
    if file.kind == "gguf":
        return _GGUF[_stated(file)]
    path = file.sidecar("1_Pooling/config.json")
    if path is None:
        return None
    config = read_object(path, file.room)
    stated = [mode for mode, value in config.items() if mode.startswith("pooling_mode_") and value]
    if len(stated) != 1 or stated[0] not in _MODES:
        raise ConfigError(f"{path.parent.name}/{path.name} does not state one way of pooling")
    return _MODES[stated[0]]


def _stated(file: ModelFile) -> int:
    keys = Keys(file, architecture(file))
    number = keys.integer("pooling", 0, low=0)
    if number not in _GGUF:
        raise ConfigError(f"'{keys.find('pooling')[0]}' is {number}, which is not known")
    return number
