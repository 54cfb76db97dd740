"""Experts of DBRX: all of a layer in one matrix, one below the other, which are told apart here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strata.formats.tensor_info import TensorInfo

_STACKED = tuple(f".experts.mlp.{part}" for part in ("w1", "v1", "w2"))


def apart(stored: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors, of which those of experts have an axis for these: [experts * rows, columns] in
    the file is [experts, rows, columns]. What does not fit stays, and is refused where a family
    looks for its shape."""
    settings = config.get("ffn_config")
    count = settings.get("moe_num_experts") if isinstance(settings, Mapping) else None
    if type(count) is not int or count < 1:
        return dict(stored)
    found = dict(stored)
    for name, info in stored.items():
        if name.endswith(_STACKED) and len(info.shape) == 2 and info.shape[0] % count == 0:
            rows, columns = info.shape
            found[name] = replace(info, shape=(count, rows // count, columns))
    return found
