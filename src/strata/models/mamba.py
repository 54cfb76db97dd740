"""Mamba and Mamba-2: layers of one mixer each, no attention (arXiv:2312.00752, 2405.21060); Falcon
Mamba, which norms the step, B and C of the former (arXiv:2410.05355)."""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, state_space
from strata.models.config import Config, read_config
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model


def frame_tensors(c: Config) -> dict[str, Tensor]:
    """As the configurations of these families name them."""
    tensors = decoder.frame_tensors(c)
    embedding = Tensor("{p}embeddings.weight", (c.vocab, c.width))
    norm = Tensor("{p}norm_f.weight", (c.width,))
    return {**tensors, "token_embd.weight": embedding, "output_norm.weight": norm}


def tensors2(c: Config) -> dict[str, Tensor]:
    """The tensors of a Mamba-2."""
    return _tensors(c, state_space.tensors2(c, state_space.read_sizes(c, version=2), "mixer"))


def _tensors(c: Config, mixer: dict[str, Tensor]) -> dict[str, Tensor]:
    norm = Tensor("{p}layers.{i}.norm.weight", (c.width,))
    return {**frame_tensors(c), "blk.{i}.attn_norm.weight": norm, **mixer}


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """A Mamba."""
    return _build(file, architecture, context, 1)


def build2(file: ModelFile, architecture: str, context: int | None) -> Model:
    """A Mamba-2."""
    return _build(file, architecture, context, 2)


def _build(file: ModelFile, architecture: str, context: int | None, version: int) -> Model:
    c = read_config(file, architecture, context, mixed=True, tied=True)
    decoder.check_activation(c, "silu")
    sizes = state_space.read_sizes(c, version=version, inner=c.ffn or None)
    tensors = state_space.tensors1 if version == 1 else state_space.tensors2
    catalog = Catalog(
        file,
        _tensors(c, tensors(c, sizes, "mixer")),
        c.layers,
        prefixes=("backbone.", "model.", ""),
        harmless=decoder.harmless(c),
    )
    name = "rms_eps" if file.kind == "gguf" else "layer_norm_eps"
    eps = c.keys.number(name, 1e-5, low=1e-12, high=1.0)
    kept = state_space.Kept()
    step_eps = None
    if architecture == "FalconMambaForCausalLM":
        step_eps = c.keys.number("ssm_step_eps", 1e-6, low=1e-12, high=1.0)
    elif c.keys.flag("ssm_step_norms", False):
        step_eps = eps

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if version == 1:
            h = state_space.mixer1(b, c, sizes, catalog, kept, h, i, step_eps)
        else:
            h = state_space.mixer2(b, sizes, catalog, kept, h, i, eps)
        return b.add(x, h)

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
