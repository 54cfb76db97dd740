"""Weights of a model of transformers, such that mistakes show in its logits."""

from __future__ import annotations

from typing import Any


def fill(model: Any) -> None:
    """Random numbers in all parameters: matrices keep the size of what they multiply, vectors are
    about 1. To be called without gradients."""
    for weight in model.parameters():
        weight.normal_().mul_(0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
        if weight.ndim == 1:
            weight.add_(1)
