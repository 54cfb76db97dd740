"""Experts of gpt-oss: gates and ups lie in one tensor, row by row in turn, and are told apart here.

As published (``mxfp4``) ``*_blocks`` uint8 [experts, n, k / 32, 16] holds two codes a byte, the
earlier one in the low bits, and ``*_scales`` uint8 [experts, n, k / 32] exponents; unquantised they
are floats [experts, k, n]. Source: transformers' GptOss and its integration of MXFP4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.foreign.weight import FLOATS, Arrays, ForeignWeight, ReadSmall, check, part
from strata.formats.tensor_info import TensorInfo
from strata.quant import BlockType, by_name
from strata.quant.block_type import Raw

_BLOCK = 32
# Which rows of the fused tensor a weight has.
_PARTS = {
    "gate_up_proj": {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)},
    "down_proj": {"down_proj": slice(None)},
}


def find(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Experts of a checkpoint of gpt-oss, and their biases. ``settings`` and data say nothing."""
    found: list[ForeignWeight] = []
    for name, info in stored.items():
        for whole, parts in _PARTS.items():
            for ours, rows in parts.items():
                if name.endswith(f".experts.{whole}_blocks"):
                    found.append(_mxfp4(stored, info, name.removesuffix("_blocks"), ours, rows))
                elif name.endswith(f".experts.{whole}"):
                    found.append(_floats(info, ours, rows))
                elif name.endswith(f".experts.{whole}_bias"):
                    found.append(_bias(info, ours, rows))
    return found


def _mxfp4(
    stored: Mapping[str, TensorInfo], blocks: TensorInfo, name: str, ours: str, rows: slice
) -> ForeignWeight:
    if len(blocks.shape) != 4 or blocks.shape[3] != _BLOCK // 2:
        raise ForeignFormatError(
            f"tensor {shown(blocks.name)} has shape {blocks.shape}, not [experts, rows, blocks, 16]"
        )
    scales = check(part(stored, f"{name}_scales"), ("U8",), blocks.shape[:3])
    count, n, groups, _ = check(blocks, ("U8",)).shape
    shape = (count, len(range(n)[rows]), groups * _BLOCK)

    def put(arrays: Arrays, first: int, last: int) -> Raw:
        codes = arrays["blocks"][first:last, rows]
        low, high = codes & 15, codes >> 4
        out = np.empty((*codes.shape[:3], 17), np.uint8)
        out[..., 0] = arrays["scales"][first:last, rows]
        # Here a byte has a code of the first half of its block and one of the second.
        out[..., 1::2] = low[..., :8] | low[..., 8:] << 4
        out[..., 2::2] = high[..., :8] | high[..., 8:] << 4
        return out

    return _weight(blocks, ours, by_name("MXFP4"), shape, put, blocks=blocks, scales=scales)


def _floats(info: TensorInfo, ours: str, rows: slice) -> ForeignWeight:
    if len(check(info, FLOATS).shape) != 3:
        raise ForeignFormatError(
            f"tensor {shown(info.name)} has shape {info.shape}, not [experts, columns, rows]"
        )
    count, k, n = info.shape

    def put(arrays: Arrays, first: int, last: int) -> Raw:
        return np.swapaxes(arrays["bytes"][first:last, :, rows], 1, 2)

    shape = (count, len(range(n)[rows]), k)
    return _weight(info, ours, info.type, shape, put, bytes=_as_bytes(info))


def _bias(info: TensorInfo, ours: str, rows: slice) -> ForeignWeight:
    if len(check(info, FLOATS).shape) != 2:
        raise ForeignFormatError(
            f"tensor {shown(info.name)} has shape {info.shape}, not [experts, rows]"
        )
    count, n = info.shape

    def put(arrays: Arrays, first: int, last: int) -> Raw:
        chosen: NDArray[Any] = arrays["bytes"][first:last, rows]
        return chosen

    shape = (count, len(range(n)[rows]))
    return _weight(info, f"{ours}_bias", info.type, shape, put, bytes=_as_bytes(info))


def _as_bytes(info: TensorInfo) -> TensorInfo:
    """The same tensor with an axis of bytes behind the others."""
    shape = (*info.shape, info.type.nbytes // info.type.elements)
    return replace(info, type=by_name("U8"), shape=shape)


def _weight(
    source: TensorInfo,
    ours: str,
    type: BlockType,
    shape: tuple[int, ...],
    put: Callable[[Arrays, int, int], Raw],
    **parts: TensorInfo,
) -> ForeignWeight:
    name = f"{source.name.rpartition('.')[0]}.{ours}"
    info = TensorInfo(name, shape, type, source.path, source.offset, type.tensor_nbytes(shape))
    return ForeignWeight(info, parts, put, step=1)
