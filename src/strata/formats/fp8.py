"""8-bit weights of Hugging Face directories: each weight and its scale become one tensor.

An E4M3 weight `w` [n, k] comes with `w_scale_inv` or `w_scale`, a factor for each 128 x 128 square
([ceil(n / 128), k / 128]), for each row ([n, 1] or [n]) or for the whole ([] or [1]). Sources: the
model cards of DeepSeek-V3 and Qwen3 FP8; the compressed-tensors format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import Fp8ScaleError, shown
from strata.formats.tensor_info import TensorInfo
from strata.quant import by_name, dequantize
from strata.records import dataclass

BLOCK = 128
_SUFFIXES = ("_scale_inv", "_scale")
_SCALE_TYPES = ("F32", "BF16", "F16")
_E4M3 = by_name("F8_E4M3")
_SCALED = by_name("F8_E4M3_B128")


@dataclass(frozen=True)
class Fp8Weight:
    """The two stored tensors behind one presented tensor of type F8_E4M3_B128."""

    weight: TensorInfo
    scale: TensorInfo

    def factors(self, scale: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The scale, of which `scale` holds all bytes, as float32 [rows, columns]: one of each, or
        rows for all n or for each 128 of them, and columns for each 128 of k."""
        n, k = self.weight.shape
        numbers = dequantize(self.scale.type, scale, self.scale.shape)
        if numbers.size == 1:
            return numbers.reshape(1, 1)
        if self.scale.shape[0] == n and numbers.size == n:
            return numbers.reshape(n, 1)
        return numbers.reshape(-1, k // BLOCK)

    def interleave(
        self, weight: NDArray[np.uint8], scale: NDArray[np.uint8], first_row: int
    ) -> NDArray[np.uint8]:
        """Blocks of 4 bytes of float32 scale and 128 bytes of weights, uint8 [rows, k / 128 * 132].

        `weight` holds the bytes of some rows from `first_row` on, `scale` all bytes of the scale.
        """
        n, k = self.weight.shape
        groups = k // BLOCK
        rows = weight.size // k
        factors = self.factors(scale)
        each = {1: n, n: 1}.get(len(factors), BLOCK)
        factors = factors[np.arange(first_row, first_row + rows) // each]
        out = np.empty((rows, groups, _SCALED.nbytes), dtype=np.uint8)
        factors = np.broadcast_to(factors, (rows, groups))
        out[:, :, :4] = np.ascontiguousarray(factors, dtype="<f4")[:, :, None].view(np.uint8)
        out[:, :, 4:] = weight.reshape(rows, groups, BLOCK)
        return out.reshape(rows, groups * _SCALED.nbytes)


def present(
    stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> tuple[dict[str, TensorInfo], dict[str, Fp8Weight]]:
    """Replace each scaled E4M3 weight and its scale by one tensor of type F8_E4M3_B128.

    Returns the presented tensors and, for the replaced ones, what they are made of. An E4M3 tensor
    without a scale stays as it is. Raises Fp8ScaleError if a scale is not understood.
    """
    presented = dict(stored)
    weights: dict[str, Fp8Weight] = {}
    for name, info in stored.items():
        scales = [stored[name + suffix] for suffix in _SUFFIXES if name + suffix in stored]
        if info.type is not _E4M3 or not scales:
            continue
        if len(scales) > 1:
            raise Fp8ScaleError(f"{where}: tensor {shown(name)} has two scales: which one holds?")
        scale = scales[0]
        _check_scale(info, scale, config, where)
        del presented[scale.name]
        nbytes = _SCALED.tensor_nbytes(info.shape)
        presented[name] = TensorInfo(name, info.shape, _SCALED, info.path, info.offset, nbytes)
        weights[name] = Fp8Weight(info, scale)
    return presented, weights


def _check_scale(
    weight: TensorInfo, scale: TensorInfo, config: Mapping[str, Any], where: str
) -> None:
    what = f"{where}: 8-bit tensor {shown(weight.name)} of shape {weight.shape}"
    if len(weight.shape) != 2 or 0 in weight.shape or weight.shape[1] % BLOCK:
        raise Fp8ScaleError(
            f"{what}: only matrices whose rows are a multiple of {BLOCK} long can be scaled; use "
            "a version of the model in another precision"
        )
    if scale.type.name not in _SCALE_TYPES:
        raise Fp8ScaleError(
            f"{what}: its scale has the type {scale.type.name}; readable are "
            + ", ".join(_SCALE_TYPES)
        )
    n, k = weight.shape
    per_square = (-(-n // BLOCK), k // BLOCK)
    if scale.shape not in ((), (1,), (1, 1), (n,), (n, 1), per_square):
        raise Fp8ScaleError(
            f"{what}: its scale has the shape {scale.shape}, but {per_square}, {(n, 1)} or one "
            "number is needed"
        )
    quantization = config.get("quantization_config")
    if scale.shape == per_square and isinstance(quantization, dict):
        declared = quantization.get("weight_block_size", [BLOCK, BLOCK])
        if declared is not None and declared != [BLOCK, BLOCK]:
            raise Fp8ScaleError(
                f"{what}: config.json declares blocks of {shown(declared)}; only "
                f"{BLOCK} x {BLOCK} is supported"
            )
