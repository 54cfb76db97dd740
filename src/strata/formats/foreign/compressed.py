"""compressed-tensors: whole numbers of 4 or 8 bits, packed in words or one a byte.

A weight [n, k] is ``weight_scale[n, g] * (q - weight_zero_point[n, g])``. ``weight_packed``
[n, k / (32 / bits)] has q plus half its range in the bits of words, lowest first, along k;
``weight_zero_point`` likewise along n. With activation order ``weight_g_idx`` [k] names the group
of each column. Format ``int-quantized`` has ``weight`` itself in int8. 8-bit floats are read by
``strata.formats.fp8``. Source: the compressors of the compressed-tensors package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.foreign.weight import (
    FLOATS,
    Arrays,
    ForeignWeight,
    ReadSmall,
    check,
    number,
    part,
    presented,
)
from strata.formats.tensor_info import TensorInfo
from strata.quant import QuantError
from strata.quant.block_type import Raw
from strata.quant.repack import BLOCK, as_floats, narrowest, pack_codes, unpack_words

_READ = ("pack-quantized", "int-quantized")
_ELSEWHERE = ("float-quantized", "naive-quantized", "dense")


def find(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Weights of whole numbers; none in a checkpoint of 8-bit floats."""
    layout = settings.get("format")
    if layout in _ELSEWHERE or layout is None:
        return []
    if layout not in _READ:
        raise ForeignFormatError(
            f"the format {shown(layout)} is not read, only {', '.join(_READ)} and float-quantized"
        )
    bits, symmetric = _scheme(settings)
    ending = ".weight_packed" if layout == "pack-quantized" else ".weight_scale"
    prefixes = [name.removesuffix(ending) for name in stored if name.endswith(ending)]
    return [_weight(stored, prefix, bits, symmetric) for prefix in prefixes]


def _scheme(settings: Mapping[str, Any]) -> tuple[int, bool]:
    """Bits, and whether there are no zero points, in which all groups of layers have to agree."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ForeignFormatError(f"'config_groups' is {shown(groups)}")
    schemes = set()
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping) or weights.get("type", "int") != "int":
            raise ForeignFormatError("'config_groups' has weights that are no whole numbers")
        schemes.add((number(weights, "num_bits"), weights.get("symmetric", True) is True))
    if len(schemes) > 1:
        raise ForeignFormatError("'config_groups' has layers of several kinds")
    bits, symmetric = schemes.pop()
    if bits not in (4, 8):
        raise ForeignFormatError(f"{bits} bits are not read, only 4 and 8")
    return bits, symmetric


def _weight(
    stored: Mapping[str, TensorInfo], prefix: str, bits: int, symmetric: bool
) -> ForeignWeight:
    name = f"{prefix}.weight"
    packed = f"{name}_packed" in stored
    codes = check(part(stored, f"{name}_packed" if packed else name), ("I32" if packed else "I8",))
    if len(codes.shape) != 2:
        raise ForeignFormatError(f"tensor {shown(codes.name)} is no matrix")
    n, k = codes.shape[0], codes.shape[1] * (32 // bits if packed else 1)
    scale = check(part(stored, f"{name}_scale"), FLOATS)
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    if scale.shape != (n, groups) or not groups or k % groups:
        raise ForeignFormatError(
            f"tensor {shown(scale.name)} has shape {scale.shape}: not one scale a row or group"
        )
    parts = {"codes": codes, "scale": scale}
    zero = stored.get(f"{name}_zero_point")
    if not symmetric and zero is not None:
        shape = (-(-n * bits // 32), groups) if packed else (n, groups)
        parts["zero"] = check(zero, ("I32",) if packed else ("I8",), shape)
    index = stored.get(f"{name}_g_idx")
    if index is not None and groups > 1:
        parts["g_idx"] = check(index, ("I32", "I64"), (k,))
    used = {info.name for info in parts.values()}
    extra = ("_shape", "_zero_point", "_g_idx")
    unused = tuple(
        f"{name}{e}" for e in extra if f"{name}{e}" in stored and f"{name}{e}" not in used
    )
    type = _type(bits, "zero" in parts, "g_idx" in parts, k // groups, scale.type.name)

    def rows(arrays: Arrays, first: int, last: int) -> Raw:
        q = arrays["codes"][first:last]
        half = 1 << (bits - 1)
        q = unpack_words(np.ascontiguousarray(q), bits, 1) - half if packed else q.astype(np.int16)
        scales = np.ascontiguousarray(arrays["scale"][first:last])
        zeros = np.zeros(scales.shape, np.int16)
        if "zero" in arrays:
            zeros = _zeros(arrays["zero"], bits, first, last, packed)
        if "g_idx" in arrays:
            order = arrays["g_idx"]
            if order.size and not 0 <= order.min() <= order.max() < groups:
                raise QuantError(f"g_idx names groups beyond the {groups} that there are")
            return as_floats(type, scales[:, order] * (q - zeros[:, order]))
        q = q - np.repeat(zeros, k // groups, axis=1)
        if type == "F32":
            return as_floats(type, np.repeat(scales, k // groups, axis=1) * q)
        return pack_codes(type, q, scales)

    return ForeignWeight(presented(name, (n, k), type, codes), parts, rows, unused)


def _zeros(
    stored: NDArray[Any], bits: int, first: int, last: int, packed: bool
) -> NDArray[np.int16]:
    if not packed:
        return stored[first:last].astype(np.int16)
    count = 32 // bits
    start = first // count
    words = np.ascontiguousarray(stored[start : -(-last // count)])
    found = unpack_words(words, bits, 0) - (1 << (bits - 1))
    return found[first - start * count : last - start * count].astype(np.int16)


def _type(bits: int, zeros: bool, shuffled: bool, group: int, scale: str) -> str:
    """In which type a weight is exact: float32 holds each product as it is."""
    kept = narrowest(bits, zeros=zeros)
    return "F32" if shuffled or group % BLOCK or scale == "F32" or kept is None else kept
