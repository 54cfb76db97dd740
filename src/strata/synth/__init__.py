"""Models of published shapes with random weights, to measure a machine before a download."""

from __future__ import annotations

from strata.synth.outline import describe
from strata.synth.recipes import RECIPES
from strata.synth.shape import Shape, with_layers
from strata.synth.shapes import SHAPES, find_shape
from strata.synth.write import write_model

__all__ = ["RECIPES", "SHAPES", "Shape", "describe", "find_shape", "with_layers", "write_model"]
