"""Block formats of weights: one table row each, with a numpy decoder that is the truth."""

from strata.quant.block_type import BlockType, QuantError
from strata.quant.grids import grid
from strata.quant.table import ALL, by_gguf_id, by_name, dequantize

__all__ = ["ALL", "BlockType", "QuantError", "by_gguf_id", "by_name", "dequantize", "grid"]
