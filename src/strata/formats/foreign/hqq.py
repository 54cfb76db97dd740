"""HQQ: codes of 2, 4 or 8 bits with a scale and a zero point, both numbers of floating point.

A weight is ``(q - zero) * scale``, each step rounded to the type of the scales, which is the type
that it has here, too. Its numbers lie in groups: the matrix, read row after row, is cut to lines of
``group_size`` (``axis`` 1: a scale a line) or to ``group_size`` lines (``axis`` 0: a scale a
column). ``W_q`` (uint8) has the first part of the lines in the highest bits of its bytes, the last
in the lowest. Sizes are small tensors beside it: ``shape``, ``group_size``, ``axis``, ``nbits``.
Source: ``hqq.core`` of the HQQ project.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.foreign.weight import (
    FLOATS,
    Arrays,
    ForeignWeight,
    ReadSmall,
    check,
    part,
    presented,
)
from strata.formats.tensor_info import TensorInfo
from strata.quant.block_type import Raw
from strata.quant.repack import as_floats, rounded

_KEPT = ("W_q", "scale", "zero", "bias")
_NUMBERS = {"U8": "<u1", "I32": "<i4", "I64": "<i8"}


def find(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Weights of an HQQ checkpoint."""
    prefixes = [name.removesuffix(".W_q") for name in stored if name.endswith(".W_q")]
    if prefixes and read is None:
        raise ForeignFormatError("its weights say their shapes in their data: download it")
    return [_weight(stored, prefix, read) for prefix in prefixes if read is not None]


def _weight(stored: Mapping[str, TensorInfo], prefix: str, read: ReadSmall) -> ForeignWeight:
    def numbers(name: str, count: int) -> list[int]:
        info = check(part(stored, f"{prefix}.{name}"), tuple(_NUMBERS))
        data = read(info) if info.nbytes <= 64 else b""
        found = [int(x) for x in np.frombuffer(data, _NUMBERS[info.type.name])]
        if len(found) != count or min(found) < 0 or max(found) > 1 << 40:
            raise ForeignFormatError(f"tensor {shown(info.name)} has not {count} sizes")
        return found

    n, k = numbers("shape", 2)
    (group,), (axis,), (bits,) = (numbers(name, 1) for name in ("group_size", "axis", "nbits"))
    if bits not in (2, 4, 8) or axis not in (0, 1):
        raise ForeignFormatError(f"{bits} bits along axis {axis} are not read, only 2, 4 and 8")
    if not n or not k or not group or n * k % group:
        raise ForeignFormatError(f"tensor {shown(prefix)} of {n} x {k} has no groups of {group}")
    groups, in_byte = n * k // group, 8 // bits
    lines, width = (groups, group) if axis else (group, groups)
    if lines % in_byte:
        raise ForeignFormatError(
            f"tensor {shown(prefix)} has {lines} lines, no multiple of {in_byte}"
        )
    step = lines // in_byte
    codes = check(part(stored, f"{prefix}.W_q"), ("U8",), (step, width))
    scale, zero = (part(stored, f"{prefix}.{name}") for name in ("scale", "zero"))
    shape = (groups, 1) if axis else (1, groups)
    type = check(scale, FLOATS, shape).type.name
    check(zero, (type,), shape)
    ending = f"{prefix}."
    others = (name for name in stored if name.startswith(ending))
    unused = tuple(name for name in others if name.removeprefix(ending) not in _KEPT)

    def rows(arrays: Arrays, first: int, last: int) -> Raw:
        line, column = np.divmod(np.arange(first * k, last * k), width)
        place, at = np.divmod(line, step)
        shifts = (8 - bits * (place + 1)).astype(np.uint8)
        q = (arrays["codes"][at, column] >> shifts) & np.uint8((1 << bits) - 1)
        one = line if axis else column
        less = rounded(type, q.astype(np.float32) - arrays["zero"].reshape(-1)[one])
        return as_floats(type, (less * arrays["scale"].reshape(-1)[one]).reshape(-1, k))

    parts = {"codes": codes, "scale": scale, "zero": zero}
    info = presented(f"{prefix}.weight", (n, k), type, codes)
    return ForeignWeight(info, parts, rows, unused)
