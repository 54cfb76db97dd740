"""GPTQ and AWQ: codes of 2 to 8 bits in 32-bit words, with a scale and a zero point a group.

A weight [n, k] is ``scales[g, n] * (q[k, n] - z[g, n])``, g the group of the column. GPTQ packs
``qweight`` [k / (32 / bits), n] along k, ``qzeros`` [groups, n / (32 / bits)] along n; it keeps
zero points less 1 (format ``gptq``) or as they are (``gptq_v2``); with activation order ``g_idx``
[k] names the group of each column. AWQ's ``gemm`` layout packs both along n, ``qweight``
[k, n / 8],
the eight columns of a word in the order 0 2 4 6 1 3 5 7. Sources: the quantised linear layers of
AutoGPTQ, GPTQModel and AutoAWQ.

Symmetric codes of 4 bits are Q4_0 exactly, others Q5_0 (q - z is within -16 and 15), symmetric ones
of 8 bits Q8_0. Where neighbours in a row have scales of their own, F16: the float16 that the
reference's own product rounds to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from strata.quant import QuantError
from strata.quant.block_type import Raw
from strata.quant.repack import BLOCK, Codes, as_floats, narrowest, pack_codes, unpack_words

_AWQ_ORDER = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def gptq(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Weights of a GPTQ checkpoint."""
    bits, group = number(settings, "bits"), number(settings, "group_size")
    if bits not in (2, 4, 8):
        raise ForeignFormatError(f"{bits} bits are not read, only 2, 4 and 8")
    layout = settings.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise ForeignFormatError(
            f"'checkpoint_format' is {shown(layout)}; gptq and gptq_v2 are read"
        )
    symmetric = settings.get("sym", True) is True
    ordered = settings.get("desc_act", False) is True
    less = 1 if layout == "gptq" else 0
    found = []
    for prefix in _prefixes(stored):
        qweight = check(stored[f"{prefix}.qweight"], ("I32",))
        if len(qweight.shape) != 2:
            raise ForeignFormatError(f"tensor {shown(qweight.name)} is no matrix")
        k, n = qweight.shape[0] * (32 // bits), qweight.shape[1]
        each = k if group == -1 else group
        parts = _parts(stored, prefix, qweight, k, each, n, 32 // bits)
        index = f"{prefix}.g_idx"
        unused: tuple[str, ...] = ()
        shuffled = ordered and each < k and index in stored
        if shuffled:
            parts["g_idx"] = check(stored[index], ("I32",), (k,))
        elif index in stored:
            unused = (index,)
        type = _type(bits, symmetric, shuffled, each)

        def rows(
            arrays: Arrays,
            first: int,
            last: int,
            type: str = type,
            each: int = each,
        ) -> Raw:
            words = np.ascontiguousarray(arrays["qweight"][:, first:last])
            codes = unpack_words(words, bits, 0).T
            zeros = _some(arrays["qzeros"], bits, first, last, None)
            # Of a zero point of 0 the number before it is the largest.
            zeros = (zeros + less) & ((1 << bits) - 1)
            scales = arrays["scales"][:, first:last].T
            return _blocks(type, codes, zeros.T, scales, each, arrays.get("g_idx"))

        info = presented(f"{prefix}.weight", (n, k), type, qweight)
        found.append(ForeignWeight(info, parts, rows, unused))
    return found


def awq(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Weights of an AWQ checkpoint."""
    bits = number(settings, "bits" if "bits" in settings else "w_bit")
    group = number(settings, "group_size" if "group_size" in settings else "q_group_size")
    version = settings.get("version", "gemm")
    if bits != 4:
        raise ForeignFormatError(f"{bits} bits are not read, only 4")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise ForeignFormatError(f"the layout {shown(version)} is not read, only gemm")
    if settings.get("zero_point", True) is not True:
        raise ForeignFormatError("weights without zero points are not read")
    found = []
    for prefix in _prefixes(stored):
        qweight = check(stored[f"{prefix}.qweight"], ("I32",))
        if len(qweight.shape) != 2:
            raise ForeignFormatError(f"tensor {shown(qweight.name)} is no matrix")
        k, n = qweight.shape[0], qweight.shape[1] * 8
        each = k if group == -1 else group
        parts = _parts(stored, prefix, qweight, k, each, n, 8)
        type = _type(4, False, False, each)

        def rows(
            arrays: Arrays,
            first: int,
            last: int,
            type: str = type,
            each: int = each,
        ) -> Raw:
            codes = _some(arrays["qweight"], 4, first, last, _AWQ_ORDER).T
            zeros = _some(arrays["qzeros"], 4, first, last, _AWQ_ORDER).T
            scales = arrays["scales"][:, first:last].T
            return _blocks(type, codes, zeros, scales, each, None)

        info = presented(f"{prefix}.weight", (n, k), type, qweight)
        found.append(ForeignWeight(info, parts, rows))
    return found


def _prefixes(stored: Mapping[str, TensorInfo]) -> list[str]:
    return [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]


def _parts(
    stored: Mapping[str, TensorInfo],
    prefix: str,
    qweight: TensorInfo,
    k: int,
    group: int,
    n: int,
    in_word: int,
) -> dict[str, TensorInfo]:
    if group < 1 or k % group or n % in_word:
        raise ForeignFormatError(
            f"tensor {shown(qweight.name)} of {n} rows and {k} columns has no whole number of "
            f"groups of {group}"
        )
    zeros, scales = part(stored, f"{prefix}.qzeros"), part(stored, f"{prefix}.scales")
    return {
        "qweight": qweight,
        "qzeros": check(zeros, ("I32",), (k // group, n // in_word)),
        "scales": check(scales, ("F16", "BF16", "F32"), (k // group, n)),
    }


def _type(bits: int, symmetric: bool, shuffled: bool, group: int) -> str:
    """In which type a weight is exact, as far as its header tells."""
    kept = narrowest(bits, zeros=not symmetric)
    return "F16" if shuffled or group % BLOCK or kept is None else kept


def _some(
    words: NDArray[np.int32],
    bits: int,
    first: int,
    last: int,
    order: NDArray[np.intp] | None,
) -> Codes:
    """Columns ``first`` to ``last`` of numbers that are packed along the second axis."""
    count = 32 // bits
    start, end = first // count, -(-last // count)
    codes = unpack_words(np.ascontiguousarray(words[:, start:end]), bits, 1)
    if order is not None:
        codes = codes.reshape(len(codes), -1, count)[:, :, order].reshape(len(codes), -1)
    return codes[:, first - start * count : last - start * count]


def _blocks(
    type: str,
    codes: Codes,
    zeros: Codes,
    scales: NDArray[np.float32],
    group: int,
    index: NDArray[np.int32] | None,
) -> Raw:
    """Rows of codes [rows, k] with zero points and scales [rows, groups] in a block type."""
    if index is not None:
        if index.size and not 0 <= index.min() <= index.max() < scales.shape[1]:
            raise QuantError(f"g_idx names groups beyond the {scales.shape[1]} that there are")
        return as_floats("F16", scales[:, index] * (codes - zeros[:, index]))
    codes = codes - np.repeat(zeros, group, axis=1)
    if type == "F16":
        return as_floats("F16", np.repeat(scales, group, axis=1) * codes)
    return pack_codes(type, codes, np.ascontiguousarray(scales))
