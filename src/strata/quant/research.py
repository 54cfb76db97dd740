"""Formats that are studied, as arrays of a file: what each weight is made of, and its rows again.

Each has an encoder of its own beside this module, in numpy. Here its parts get the types and shapes
that they have in a file, whole numbers of few bits packed row by row, the lowest bits first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.quant import (
    additive,
    augmented,
    dynamic_tree,
    int8_outliers,
    kmeans,
    micro_rotation,
    nf4,
    spqr,
    trellis,
)
from strata.quant.block_type import Floats, QuantError
from strata.quant.propagation import Matrix
from strata.quant.sparse import Sparse
from strata.records import dataclass

Arrays = dict[str, NDArray[Any]]
Settings = Mapping[str, int]
Parts = dict[str, tuple[str, tuple[int, ...]]]
"""The type and the shape of each part."""

_MOST_APART = 1 << 31
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True)
class Format:
    """A way to keep a matrix [n, k].

    ``settings`` are its whole numbers, each with its least and greatest. ``multiples`` are those of
    n and k that it takes. ``encode`` has the weights and the second moments [k, k] of what they are
    multiplied with; ``parts`` says of what a matrix is made, ``rows`` gives some rows of it, of
    parts of which the floating-point ones may be float32.
    """

    settings: Mapping[str, tuple[int, int]]
    multiples: tuple[int, int]
    encode: Callable[[Matrix, Matrix], tuple[dict[str, int], Arrays]]
    parts: Callable[[Settings, int, int], Parts]
    rows: Callable[[Settings, Arrays, tuple[int, int], int, int], Floats]

    def takes(self, n: int, k: int) -> bool:
        """Whether a matrix has sizes that it can keep."""
        return not (n % self.multiples[0] or k % self.multiples[1]) and 0 < k <= 1 << 16


def encode(name: str, weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    """The settings and the parts of a matrix, of the types that ``parts`` says. Where a text had
    nothing but zeros for it, all inputs are taken to be alike."""
    format = FORMATS[name]
    settings, arrays = format.encode(weights, hessian if hessian.any() else np.eye(len(hessian)))
    kinds = format.parts(settings, *weights.shape)
    return settings, {part: a.astype(_DTYPES[kinds[part][0]]) for part, a in arrays.items()}


def packed(codes: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """Codes [n, m] of ``width`` bits in bytes [n, m * width / 8], rounded up."""
    bits = (codes[..., None].astype(np.uint32) >> np.arange(width, dtype=np.uint32)) & 1
    return np.packbits(bits.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")


def unpacked(raw: NDArray[np.uint8], width: int, count: int) -> NDArray[np.int64]:
    """The first ``count`` codes of each row."""
    bits = np.unpackbits(raw, axis=1, count=count * width, bitorder="little")
    found = np.zeros((len(raw), count), np.int64)
    for number in range(width):
        found |= bits[:, number::width].astype(np.int64) << number
    return found


def _bytes(count: int, width: int) -> int:
    return -(-count * width // 8)


def _encode_nf4(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    del hessian
    kept = nf4.encode(weights.astype(np.float32))
    codes = kept.codes.reshape(len(weights), -1)
    arrays: Arrays = {"codes": codes, "scales": kept.scales, "outer": kept.outer}
    return {}, {**arrays, "offset": np.array([kept.offset])}


def _parts_nf4(settings: Settings, n: int, k: int) -> Parts:
    blocks = -(-n * k // nf4.BLOCK)
    outer = ("F32", (-(-blocks // nf4.SCALES_BLOCK),))
    return {
        "codes": ("U8", (n, k // 2)),
        "scales": ("U8", (blocks,)),
        "outer": outer,
        "offset": ("F32", (1,)),
    }


def _rows_nf4(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    k = shape[1]
    codes = a["codes"][first:last]
    numbers = np.stack([codes >> 4, codes & 15], axis=2).reshape(last - first, k)
    block = np.arange(first * k, last * k).reshape(-1, k) // nf4.BLOCK
    scales = (
        dynamic_tree.levels()[a["scales"]] * a["outer"].repeat(nf4.SCALES_BLOCK)[: len(a["scales"])]
    )
    found: Floats = nf4.levels()[numbers] * (scales + a["offset"])[block]
    return found


def _encode_tree(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    del hessian
    codes, scales = dynamic_tree.encode(weights.astype(np.float32))
    return {}, {"codes": codes.reshape(weights.shape), "scales": scales}


def _parts_tree(settings: Settings, n: int, k: int) -> Parts:
    return {"codes": ("U8", (n, k)), "scales": ("F32", (-(-n * k // dynamic_tree.BLOCK),))}


def _rows_tree(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    k = shape[1]
    block = np.arange(first * k, last * k).reshape(-1, k) // dynamic_tree.BLOCK
    found: Floats = dynamic_tree.levels()[a["codes"][first:last]] * a["scales"][block]
    return found


def _apart(kept: Sparse) -> Arrays:
    return {"starts": kept.starts, "columns": kept.columns, "values": kept.values}


def _parts_apart(settings: Settings, n: int) -> Parts:
    count = (settings["apart"],)
    return {"starts": ("I32", (n + 1,)), "columns": ("U16", count), "values": ("F16", count)}


def _sparse_rows(a: Arrays, k: int, first: int, last: int) -> Sparse:
    """What is apart of some rows. QuantError where it lies in no row or column."""
    starts = a["starts"].astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(a["columns"]):
        raise QuantError("what is kept apart does not begin and end where its rows do")
    if len(a["columns"]) and a["columns"].max() >= k:
        raise QuantError(f"something is kept apart in a column beyond {k}")
    low, high = starts[first], starts[last]
    mine = (starts[first : last + 1] - low).astype(np.int32)
    return Sparse(mine, a["columns"][low:high], a["values"][low:high].astype(np.float16))


def _encode_spqr(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    kept = spqr.encode(weights, hessian)
    arrays: Arrays = {
        "codes": packed(kept.codes, kept.width),
        "scales": packed(kept.scales, spqr.SCALE_BITS),
        "zeros": packed(kept.zeros, spqr.SCALE_BITS),
        "outer": kept.outer,
    }
    settings = {"width": kept.width, "apart": len(kept.apart.values)}
    return settings, {**arrays, **_apart(kept.apart)}


def _parts_spqr(settings: Settings, n: int, k: int) -> Parts:
    small = ("U8", (n, _bytes(k // spqr.GROUP, spqr.SCALE_BITS)))
    return {
        "codes": ("U8", (n, _bytes(k, settings["width"]))),
        "scales": small,
        "zeros": small,
        "outer": ("F16", (4, n // spqr.ROWS, k // spqr.GROUP)),
        **_parts_apart(settings, n),
    }


def _rows_spqr(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    k = shape[1]
    begin, end = first // spqr.ROWS * spqr.ROWS, -(-last // spqr.ROWS) * spqr.ROWS
    here, groups = slice(begin, end), k // spqr.GROUP
    kept = spqr.SpQR(
        s["width"],
        unpacked(a["codes"][here], s["width"], k).astype(np.uint8),
        unpacked(a["scales"][here], spqr.SCALE_BITS, groups).astype(np.uint8),
        unpacked(a["zeros"][here], spqr.SCALE_BITS, groups).astype(np.uint8),
        a["outer"][:, begin // spqr.ROWS : end // spqr.ROWS].astype(np.float16),
        _sparse_rows(a, k, begin, end),
    )
    return spqr.decode(kept)[first - begin : last - begin]


def _encode_squeezed(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    # Columns' moments stand for what the loss is sensitive to.
    sensitivity = np.broadcast_to(np.diag(hessian), weights.shape)
    kept = kmeans.encode(weights, sensitivity)
    arrays: Arrays = {"codes": packed(kept.codes, kept.width), "levels": kept.levels}
    settings = {"width": kept.width, "apart": len(kept.apart.values)}
    return settings, {**arrays, **_apart(kept.apart)}


def _parts_squeezed(settings: Settings, n: int, k: int) -> Parts:
    return {
        "codes": ("U8", (n, _bytes(k, settings["width"]))),
        "levels": ("F16", (n, 1 << settings["width"])),
        **_parts_apart(settings, n),
    }


def _rows_squeezed(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    kept = kmeans.Squeezed(
        s["width"],
        a["levels"][first:last].astype(np.float16),
        unpacked(a["codes"][first:last], s["width"], shape[1]).astype(np.uint8),
        _sparse_rows(a, shape[1], first, last),
    )
    return kmeans.decode(kept)


def _encode_additive(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    kept = additive.encode(weights, hessian, 2, 8 if weights.size >= 1 << 20 else 6, rounds=1)
    codes = packed(kept.codes.reshape(len(weights), -1), kept.width)
    arrays: Arrays = {"codes": codes, "books": kept.books, "scales": kept.scales}
    return {"width": kept.width, "books": len(kept.books)}, arrays


def _parts_additive(settings: Settings, n: int, k: int) -> Parts:
    width, count = settings["width"], settings["books"]
    return {
        "codes": ("U8", (n, _bytes(k // additive.GROUP * count, width))),
        "books": ("F16", (count, 1 << width, additive.GROUP)),
        "scales": ("F16", (n,)),
    }


def _rows_additive(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    groups = shape[1] // additive.GROUP
    codes = unpacked(a["codes"][first:last], s["width"], groups * s["books"])
    kept = additive.Additive(
        s["width"],
        a["books"].astype(np.float16),
        codes.reshape(-1, groups, s["books"]).astype(np.uint16),
        a["scales"][first:last].astype(np.float16),
    )
    return additive.decode(kept)


def _encode_trellis(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    kept = trellis.encode(weights, hessian, 2, 8)
    across, down, run = kept.symbols.shape
    codes = packed(kept.symbols.reshape(-1, run), kept.bits).reshape(across, down, -1)
    left, right = (packed((s < 0)[None].astype(np.uint8), 1)[0] for s in kept.signs)
    arrays: Arrays = {"codes": codes, "scales": kept.scales, "left": left, "right": right}
    return {"bits": kept.bits, "state_bits": kept.state_bits}, arrays


def _parts_trellis(settings: Settings, n: int, k: int) -> Parts:
    tile = trellis.TILE
    return {
        "codes": ("U8", (k // tile, n // tile, trellis.RUN * settings["bits"] // 8)),
        "scales": ("F16", (n,)),
        "left": ("U8", (_bytes(n, 1),)),
        "right": ("U8", (_bytes(k, 1),)),
    }


def _rows_trellis(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    """Rows come in the blocks that Hadamard matrices mix."""
    n, k = shape
    block, tile = trellis.turned_together(n), trellis.TILE
    left, right = (
        np.int8(1) - np.int8(2) * unpacked(a[side][None], 1, size)[0].astype(np.int8)
        for side, size in (("left", n), ("right", k))
    )
    begin = first // block * block
    made = []
    for at in range(begin, last, block):
        codes = a["codes"][:, at // tile : (at + block) // tile]
        symbols = unpacked(codes.reshape(-1, codes.shape[2]), s["bits"], trellis.RUN)
        kept = trellis.Trellis(
            s["bits"],
            s["state_bits"],
            symbols.astype(np.uint8).reshape(*codes.shape[:2], -1),
            a["scales"][at : at + block].astype(np.float16),
            (left[at : at + block], right),
        )
        made.append(trellis.decode(kept))
    return np.concatenate(made)[first - begin : last - begin]


def _encode_int8(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    kept = int8_outliers.encode(weights.astype(np.float32), hessian)
    arrays: Arrays = {"codes": kept.codes.view(np.uint8), "scales": kept.scales}
    apart: Arrays = {"columns": kept.columns, "values": kept.values}
    return {"apart": len(kept.columns)}, {**arrays, **apart}


def _parts_int8(settings: Settings, n: int, k: int) -> Parts:
    apart = settings["apart"]
    return {
        "codes": ("U8", (n, k)),
        "scales": ("F32", (n,)),
        "columns": ("U16", (apart,)),
        "values": ("F16", (n, apart)),
    }


def _rows_int8(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
    kept = int8_outliers.Decomposed(
        a["codes"][first:last].view(np.int8),
        a["scales"][first:last],
        _columns(a["columns"], shape[1]),
        a["values"][first:last].astype(np.float16),
    )
    return int8_outliers.decode(kept)


def _columns(stored: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Columns of their own, rising. QuantError where they are not."""
    columns = stored.astype(np.intp)
    if (np.diff(columns) <= 0).any() or columns.max(initial=0) >= k:
        raise QuantError(f"columns that are kept apart do not rise, or go beyond {k}")
    return columns


def _four_bits(
    values: Matrix, scales: Matrix, unit: float, format: micro_rotation.FloatFormat
) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Codes, packed, and numbers of scales."""
    numbers = values / scales.repeat(format.group, axis=1)
    codes = np.searchsorted(micro_rotation.E2M1, np.abs(numbers)) + 8 * np.signbit(numbers)
    return packed(codes, 4), np.searchsorted(format.scales, scales / unit)


def _of_four_bits(
    codes: NDArray[np.uint8], at: NDArray[Any], unit: float, format: micro_rotation.FloatFormat
) -> Matrix:
    """The values [n, k] of codes [n, k / 2] and numbers of scales [n, k / group]."""
    if at.max(initial=0) >= len(format.scales):
        raise QuantError(f"a scale is beyond the {len(format.scales)} that there are")
    read = unpacked(codes, 4, at.shape[1] * format.group)
    numbers = np.where(read > 7, -1.0, 1.0) * micro_rotation.E2M1[read & 7]
    found: Matrix = numbers * (format.scales[at] * np.float64(unit)).repeat(format.group, axis=1)
    return found


def _encode_augmented(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
    kept = augmented.encode(weights, hessian)
    format, units = micro_rotation.NVFP4, kept.units
    codes, scales = _four_bits(kept.values, kept.scales, float(units[0]), format)
    lost, lost_scales = _four_bits(kept.lost, kept.lost_scales, float(units[1]), format)
    arrays: Arrays = {"codes": codes, "scales": scales, "columns": kept.columns}
    arrays |= {"lost": lost, "lost_scales": lost_scales, "units": units}
    return {"groups": len(kept.columns) // format.group}, arrays


def _parts_augmented(settings: Settings, n: int, k: int) -> Parts:
    groups, size = settings["groups"], micro_rotation.NVFP4.group
    return {
        "codes": ("U8", (n, k // 2)),
        "scales": ("U8", (n, k // size)),
        "columns": ("U16", (groups * size,)),
        "lost": ("U8", (n, groups * size // 2)),
        "lost_scales": ("U8", (n, groups)),
        "units": ("F32", (2,)),
    }


def _rows_augmented(
    s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int
) -> Floats:
    here, format, units = slice(first, last), micro_rotation.NVFP4, a["units"]
    found = _of_four_bits(a["codes"][here], a["scales"][here], units[0], format)
    found[:, _columns(a["columns"], shape[1])] += _of_four_bits(
        a["lost"][here], a["lost_scales"][here], units[1], format
    )
    return found.astype(np.float32)


def _rotated(format: micro_rotation.FloatFormat) -> Format:
    """4-bit floats in rotated groups."""

    def encode(weights: Matrix, hessian: Matrix) -> tuple[dict[str, int], Arrays]:
        values, scales = micro_rotation.encode_scaled(weights, hessian, format, rotated=True)
        unit = format.unit(weights @ micro_rotation.rotation(weights.shape[1], format.group))
        codes, at = _four_bits(values, scales, unit, format)
        return {}, {"codes": codes, "scales": at, "unit": np.array([unit])}

    def parts(settings: Settings, n: int, k: int) -> Parts:
        return {
            "codes": ("U8", (n, k // 2)),
            "scales": ("U8", (n, k // format.group)),
            "unit": ("F32", (1,)),
        }

    def rows(s: Settings, a: Arrays, shape: tuple[int, int], first: int, last: int) -> Floats:
        here = slice(first, last)
        values = _of_four_bits(a["codes"][here], a["scales"][here], a["unit"][0], format)
        return micro_rotation.turned_back(values, format)

    return Format({}, (1, format.group), encode, parts, rows)


_WIDTHS = {"width": (1, 8), "apart": (0, _MOST_APART)}
FORMATS: Mapping[str, Format] = {
    "nf4": Format({}, (1, 2), _encode_nf4, _parts_nf4, _rows_nf4),
    "dynamic-tree": Format({}, (1, 1), _encode_tree, _parts_tree, _rows_tree),
    "spqr": Format(_WIDTHS, (16, 16), _encode_spqr, _parts_spqr, _rows_spqr),
    "squeezellm": Format(_WIDTHS, (1, 1), _encode_squeezed, _parts_squeezed, _rows_squeezed),
    "aqlm": Format(
        {"width": (1, 16), "books": (1, 8)},
        (1, 8),
        _encode_additive,
        _parts_additive,
        _rows_additive,
    ),
    "trellis": Format(
        {"bits": (1, 8), "state_bits": (8, 16)},
        (16, 16),
        _encode_trellis,
        _parts_trellis,
        _rows_trellis,
    ),
    "llm-int8": Format({"apart": (0, 1 << 16)}, (1, 1), _encode_int8, _parts_int8, _rows_int8),
    "arcquant": Format(
        {"groups": (0, 1 << 12)},
        (1, 16),
        _encode_augmented,
        _parts_augmented,
        _rows_augmented,
    ),
    "mxfp4-rotated": _rotated(micro_rotation.MXFP4),
    "nvfp4-rotated": _rotated(micro_rotation.NVFP4),
}
"""By name."""
