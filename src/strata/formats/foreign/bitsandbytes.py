"""bitsandbytes: 4-bit levels of a table under scales of 64 weights, and int8 rows.

4 bits: ``weight`` (uint8, the first of two weights in the high bits) numbers levels of
``weight.quant_map`` [16]; each run of ``blocksize`` weights, counted through the whole matrix, has
a scale in ``weight.absmax``. Double quantised scales are levels of ``weight.nested_quant_map``
[256] times ``weight.nested_absmax`` for each 256 of them, plus an offset. A JSON object, kept as a
tensor,
``weight.quant_state.bitsandbytes__nf4`` or ``__fp4``, has sizes, offset and the type that they are
read back in, which is theirs here, too. 8 bits: ``weight`` (int8) times ``SCB`` [n] / 127, in
float16. Source: ``bitsandbytes.functional``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.foreign.weight import (
    Arrays,
    ForeignWeight,
    ReadSmall,
    check,
    number,
    part,
    presented,
)
from strata.formats.tensor_info import TensorInfo
from strata.quant.block_type import Raw
from strata.quant.repack import as_floats

_STATE = ".quant_state.bitsandbytes__"
_TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_LONGEST_STATE = 1 << 16
_INVERSE_127 = np.float32(7.874015718698502e-3)


def find(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Weights of a bitsandbytes checkpoint."""
    found = []
    for name in stored:
        if _STATE in name:
            if read is None:
                raise ForeignFormatError(
                    "4-bit weights say their shapes in their data: download it"
                )
            weight, _, kind = name.partition(_STATE)
            found.append(_levels(stored, weight, kind, stored[name], read))
        elif name.endswith(".SCB"):
            found.append(_rows_of_int8(stored, name.removesuffix(".SCB")))
    return found


def _levels(
    stored: Mapping[str, TensorInfo],
    name: str,
    kind: str,
    state_info: TensorInfo,
    read: ReadSmall,
) -> ForeignWeight:
    if kind not in ("nf4", "fp4") or state_info.nbytes > _LONGEST_STATE:
        raise ForeignFormatError(f"tensor {shown(state_info.name)} is not of nf4 or fp4")
    try:
        state = json.loads(read(state_info))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise ForeignFormatError(f"tensor {shown(state_info.name)} is no JSON object")
    shape = state.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(x) is int for x in shape)):
        raise ForeignFormatError(f"tensor {shown(name)} has the shape {shown(shape)}")
    n, k = shape
    kept = _TYPES.get(str(state.get("dtype")))
    if kept is None:
        raise ForeignFormatError(f"tensor {shown(name)} is of {shown(state.get('dtype'))}")
    block = number(state, "blocksize")
    weight = check(part(stored, name), ("U8",))
    if n < 1 or k < 2 or k % 2 or weight.nbytes * 2 != n * k or block < 1:
        raise ForeignFormatError(f"tensor {shown(name)} has not the {shown(shape)} that it says")
    blocks = -(-n * k // block)
    nested = f"{name}.nested_absmax" in stored
    table = check(part(stored, f"{name}.quant_map"), ("F32",), (16,))
    scales = check(part(stored, f"{name}.absmax"), ("U8",) if nested else ("F32",), (blocks,))
    parts = {"weight": weight, "map": table, "absmax": scales}
    each, offset = 1, np.float32(0)
    if nested:
        each = number(state, "nested_blocksize", 256)
        given = state.get("nested_offset", 0.0)
        if each < 1 or not isinstance(given, (int, float)):
            raise ForeignFormatError(f"tensor {shown(state_info.name)} has odd nested scales")
        offset = np.float32(given)
        outer = part(stored, f"{name}.nested_absmax")
        parts["outer"] = check(outer, ("F32",), (-(-blocks // each),))
        nested_map = part(stored, f"{name}.nested_quant_map")
        parts["outer_map"] = check(nested_map, ("F32",), (256,))

    def rows(arrays: Arrays, first: int, last: int) -> Raw:
        packed = arrays["weight"].reshape(-1)[first * k // 2 : last * k // 2]
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        start, end = first * k // block, -(-last * k // block)
        absmax = arrays["absmax"][start:end]
        if nested:
            outer = arrays["outer"][np.arange(start, end) // each]
            absmax = arrays["outer_map"][absmax] * outer + offset
        at = np.arange(first * k, last * k) // block - start
        values = (arrays["map"][codes] * absmax[at]).reshape(-1, k)
        return as_floats(kept, values)

    return ForeignWeight(presented(name, (n, k), kept, weight), parts, rows, (state_info.name,))


def _rows_of_int8(stored: Mapping[str, TensorInfo], prefix: str) -> ForeignWeight:
    name = f"{prefix}.weight"
    weight = check(part(stored, name), ("I8",))
    if len(weight.shape) != 2:
        raise ForeignFormatError(f"tensor {shown(name)} is no matrix")
    n, k = weight.shape
    parts = {"weight": weight, "scale": check(stored[f"{prefix}.SCB"], ("F32",), (n,))}
    layout = f"{prefix}.weight_format"

    def rows(arrays: Arrays, first: int, last: int) -> Raw:
        codes = arrays["weight"][first:last].astype(np.float32)
        # In their order, so that every product rounds as there.
        return as_floats("F16", codes * arrays["scale"][first:last, None] * _INVERSE_127)

    unused = (layout,) if layout in stored else ()
    return ForeignWeight(presented(name, (n, k), "F16", weight), parts, rows, unused)
