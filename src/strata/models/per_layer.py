"""Per-layer embeddings: what a token is, and what its embedding makes of it, beside the residual of
each layer (Gemma 3n and 4).

Between layers the inputs of all of them lie behind the residual.
"""

from __future__ import annotations

import math

import numpy as np

from strata.models import decoder
from strata.models.config import MAX_VOCABULARY, MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder
from strata.records import dataclass


@dataclass(frozen=True)
class PerLayer:
    """``width`` numbers for each of ``layers``, 0 where a model has none; ``residual`` is how wide
    that is which they lie behind."""

    width: int
    layers: int
    residual: int

    @property
    def all(self) -> int:
        """Those of all layers."""
        return self.width * self.layers

    def residual_of(self, b: Builder, row: str) -> str:
        """What the inputs lie behind."""
        return b.columns(row, head_dim=self.residual + self.all, start=0, width=self.residual)

    def inputs_of(self, b: Builder, row: str) -> str:
        """The inputs of all layers."""
        whole = self.residual + self.all
        return b.columns(row, head_dim=whole, start=self.residual, width=self.all)

    def input_of(self, b: Builder, row: str, i: int) -> str:
        """The input of layer i."""
        whole, start = self.residual + self.all, self.residual + i * self.width
        return b.columns(row, head_dim=whole, start=start, width=self.width)


def read_per_layer(c: Config, residual: int, default: int = 0) -> PerLayer:
    """What a file states of them; ``default`` is the width where it states none."""
    width = c.keys.integer("per_layer", default, low=min(default, 1), high=MAX_WIDTH)
    if width * c.layers > MAX_WIDTH:
        key = c.keys.find("per_layer")[0]
        raise ConfigError(f"'{key}' is {width}: {c.layers} layers have {MAX_WIDTH} at most")
    return PerLayer(width, c.layers, residual)


def tensors(c: Config, p: PerLayer) -> dict[str, Tensor]:
    """The table, what is made of embeddings, and what puts both into a layer."""
    if not p.width:
        return {}
    rows = c.vocab
    if c.keys.kind == "huggingface":
        rows = c.keys.integer("per_layer_vocab", c.vocab, high=MAX_VOCABULARY)
    layer = "{p}layers.{i}."
    return {
        "per_layer_token_embd.weight": Tensor("{p}embed_tokens_per_layer.weight", (rows, p.all)),
        "per_layer_model_proj.weight": Tensor(
            "{p}per_layer_model_projection.weight", (p.all, c.width)
        ),
        "per_layer_proj_norm.weight": Tensor("{p}per_layer_projection_norm.weight", (p.width,)),
        "blk.{i}.inp_gate.weight": Tensor(
            f"{layer}per_layer_input_gate.weight", (p.width, c.width)
        ),
        "blk.{i}.proj.weight": Tensor(f"{layer}per_layer_projection.weight", (c.width, p.width)),
        "blk.{i}.post_norm.weight": Tensor(f"{layer}post_per_layer_input_norm.weight", (c.width,)),
    }


def behind(b: Builder, c: Config, p: PerLayer, residual: str, embedding: str, eps: float) -> str:
    """The residual with the inputs of all layers behind it; ``embedding`` is the scaled one."""
    if not p.width:
        return residual
    with b.unit("per_layer"):
        own = b.embed("per_layer_token_embd.weight", float(np.float32(math.sqrt(p.width))))
        made = b.matmul(embedding, "per_layer_model_proj.weight")
    made = b.scale(made, float(np.float32(c.width**-0.5)))
    made = b.rms_norm(made, "per_layer_proj_norm.weight", eps)
    inputs = b.scale(b.add(made, own), float(np.float32(2.0**-0.5)))
    return b.join(residual, inputs, heads=1)


def gated(b: Builder, catalog: Catalog, p: PerLayer, x: str, row: str, i: int, eps: float) -> str:
    """What layer i's input gives where x gates it."""
    name = f"blk.{i}."
    with b.unit("ffn"):
        gate = decoder.product(b, catalog, x, f"{name}inp_gate")
        mixed = b.glu(gate, p.input_of(b, row, i), "gelu_tanh")
        out = decoder.product(b, catalog, mixed, f"{name}proj")
    return b.rms_norm(out, f"{name}post_norm.weight", eps)
