"""Model files that are all header: enough to build a Model, no bytes to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import make_tiny_models
from strata.formats import TensorInfo
from strata.quant import by_name


class Header:
    """Stands for an opened file of the given kind."""

    def __init__(
        self, kind: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.kind = kind
        self.metadata = dict(metadata)
        f32 = by_name("F32")
        self.tensors = {
            name: TensorInfo(name, tuple(shape), f32, Path("x"), 0, f32.tensor_nbytes(shape))
            for name, shape in shapes.items()
        }


def huggingface(name: str, **changed: Any) -> Any:
    """The header of a tiny model's directory; ``changed`` replaces keys, ... removes them."""
    golden = make_tiny_models.golden(name)
    return Header("huggingface", _changed(golden.config, changed), golden.shapes)


def gguf(name: str, **changed: Any) -> Any:
    """The header of a tiny model as GGUF; keys of ``changed`` are without the architecture."""
    golden = make_tiny_models.golden(name)
    shapes = {k: a.shape for k, a in make_tiny_models.gguf_arrays(golden).items()}
    keys = make_tiny_models.gguf_keys(golden)
    architecture = keys["general.architecture"]
    changes = {f"{architecture}.{k}": v for k, v in changed.items()}
    return Header("gguf", _changed(keys, changes), shapes)


def _changed(keys: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**keys, **changed}
    return {k: v for k, v in merged.items() if v is not ...}
