"""Encoders for blocks of 256 with quantised scales, and for the 16 uneven levels of IQ4.

Values are rounded under the scales as they will be read back, so the error of a sub-block is half a
step plus what quantising its scale and minimum costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.bits import half_bytes, pack
from strata.quant.block_type import Floats, Raw
from strata.quant.grids import grid


def _stored_half(values: Floats) -> Floats:
    """float32 rounded through half precision, as a reader will see it."""
    return values.astype(np.float16).astype(np.float32)


def _divide(values: Floats, by: Floats) -> Floats:
    """values / by, and 0 where `by` is 0 (a scale of zero can only mean zero)."""
    by = np.broadcast_to(by, values.shape)
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _rounded(values: Floats, low: int, high: int) -> NDArray[np.int16]:
    return np.rint(values).clip(low, high).astype(np.int16)


def _shifted(
    blocks: Floats, width: int, bits: int, scale_bits: int
) -> tuple[Floats, Floats, NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]:
    """Levels of d * scale * q - dmin * minimum over sub-blocks of `width`.

    Returns d, dmin [n, 1], scales, minima [n, 256 / width] and q [n, 256].
    """
    n = len(blocks)
    sub = blocks.reshape(n, -1, width)
    top, scale_top = (1 << bits) - 1, (1 << scale_bits) - 1
    # Zero stays inside the range: a minimum is stored as a number of at least 0 to subtract.
    low = np.minimum(sub.min(axis=2), 0)
    step = (np.maximum(sub.max(axis=2), 0) - low) / np.float32(top)
    d = _stored_half(step.max(axis=1, keepdims=True) / np.float32(scale_top))
    dmin = _stored_half((-low).max(axis=1, keepdims=True) / np.float32(scale_top))
    # Scales are rounded up, so that the largest values of a sub-block stay in reach.
    scales = np.ceil(_divide(step, d)).clip(0, scale_top).astype(np.int16)
    minima = _rounded(_divide(-low, dmin), 0, scale_top)
    shift = (dmin * minima.astype(np.float32))[:, :, None]
    q = _rounded(_divide(sub + shift, (d * scales.astype(np.float32))[:, :, None]), 0, top)
    return d, dmin, scales, minima, q.reshape(n, 256)


def _symmetric(
    blocks: Floats, middle: int, scale_middle: int
) -> tuple[Floats, NDArray[np.int16], NDArray[np.int16]]:
    """Levels of d * scale * q over sub-blocks of 16, q in [-middle, middle).

    Returns d [n, 1], scales [n, 16] and q [n, 256]. The largest magnitude of a sub-block lands on
    the lowest level, so scales carry a sign.
    """
    n = len(blocks)
    sub = blocks.reshape(n, 16, 16)
    at = np.abs(sub).argmax(axis=2)[:, :, None]
    step = np.take_along_axis(sub, at, axis=2)[:, :, 0] / np.float32(-middle)
    d = _stored_half(np.abs(step).max(axis=1, keepdims=True) / np.float32(scale_middle - 1))
    scales = _rounded(_divide(step, d), -scale_middle, scale_middle - 1)
    q = _rounded(_divide(sub, (d * scales.astype(np.float32))[:, :, None]), -middle, middle - 1)
    return d, scales, q.reshape(n, 256)


def encode_q2_k(blocks: Floats) -> Raw:
    d, dmin, scales, minima, q = _shifted(blocks, 16, 2, 4)
    both = (scales | (minima << 4)).astype(np.uint8)
    return np.concatenate([both, pack(q, 2, 32), half_bytes(d), half_bytes(dmin)], axis=1)


def encode_q3_k(blocks: Floats) -> Raw:
    d, scales, q = _symmetric(blocks, 4, 32)
    stored, levels = scales + 32, q + 4
    parts = [
        pack(levels >> 2, 1, 32),
        pack(levels & 3, 2, 32),
        pack(stored & 15, 4, 8),
        pack(stored >> 4, 2, 4),
        half_bytes(d),
    ]
    return np.concatenate(parts, axis=1)


def _k4_scales(scales: NDArray[np.int16], minima: NDArray[np.int16]) -> Raw:
    """The inverse of `kquants.k4_scales`."""
    parts = [
        scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
        minima[:, :4] | ((minima[:, 4:] >> 4) << 6),
        (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4),
    ]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def encode_q4_k(blocks: Floats) -> Raw:
    d, dmin, scales, minima, q = _shifted(blocks, 32, 4, 6)
    parts = [half_bytes(d), half_bytes(dmin), _k4_scales(scales, minima), pack(q, 4, 32)]
    return np.concatenate(parts, axis=1)


def encode_q5_k(blocks: Floats) -> Raw:
    d, dmin, scales, minima, q = _shifted(blocks, 32, 5, 6)
    head = [half_bytes(d), half_bytes(dmin), _k4_scales(scales, minima)]
    return np.concatenate([*head, pack(q >> 4, 1, 32), pack(q & 15, 4, 32)], axis=1)


def encode_q6_k(blocks: Floats) -> Raw:
    d, scales, q = _symmetric(blocks, 32, 128)
    levels = q + 32
    parts = [
        pack(levels & 15, 4, 64),
        pack(levels >> 4, 2, 32),
        scales.astype(np.int8).view(np.uint8),
        half_bytes(d),
    ]
    return np.concatenate(parts, axis=1)


def _nearest_level(scaled: Floats) -> NDArray[np.intp]:
    levels = grid("IQ4_NL").astype(np.float32)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled)


def _iq4_step(sub: Floats) -> Floats:
    """Steps [..., 1] that put the value of largest magnitude on the outermost level, -127."""
    at = np.abs(sub).argmax(axis=-1, keepdims=True)
    out: Floats = np.take_along_axis(sub, at, axis=-1) / np.float32(grid("IQ4_NL")[0])
    return out


def encode_iq4_nl(blocks: Floats) -> Raw:
    d = _stored_half(_iq4_step(blocks))
    return np.concatenate([half_bytes(d), pack(_nearest_level(_divide(blocks, d)), 4, 16)], axis=1)


def encode_iq4_xs(blocks: Floats) -> Raw:
    n = len(blocks)
    sub = blocks.reshape(n, 8, 32)
    step = _iq4_step(sub)[:, :, 0]
    d = _stored_half(np.abs(step).max(axis=1, keepdims=True) / np.float32(31))
    scales = _rounded(_divide(step, d), -32, 31)
    q = _nearest_level(_divide(sub, (d * scales.astype(np.float32))[:, :, None]))
    stored = scales + 32
    parts = [
        half_bytes(d),
        pack(stored >> 4, 2, 1),
        pack(stored & 15, 4, 1),
        pack(q.reshape(n, 256), 4, 16),
    ]
    return np.concatenate(parts, axis=1)
