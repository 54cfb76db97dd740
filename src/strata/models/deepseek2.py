"""DeepSeek V2 and V3 and what has their layers (Kimi K2, GLM-4.7-Flash, GigaChat, Mistral 4, A.X
K1): latent attention, then experts beside a shared one (arXiv:2405.04434, arXiv:2412.19437).

Blocks that predict further tokens are Models of their own, whose indexers are left out. Those of
layers (DeepSeek V3.2, GLM-5; ``sparse_index.py``) are there where more positions come than they
choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, latent, mtp, sparse_index
from strata.models.config import Config, read_config
from strata.models.keys import real
from strata.models.rope import Rope, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model, PagedKV

_BY_SIGMOID = {
    "glm-dsa",
    *(f"{name}ForCausalLM" for name in ("DeepseekV3", "DeepseekV32", "Glm4MoeLite", "GlmMoeDsa")),
    "AXK1ForCausalLM",
}


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of such a file."""
    c, a, further = _read(file, architecture, context)
    m = experts.read_mixture(c, scoring=_scoring(c))
    style = "neox" if architecture in ("deepseek32", "DeepseekV32ForCausalLM") else "interleaved"
    index = sparse_index.read_index(c, a.q_rank, a.rope, style=style)
    tensors = {**decoder.frame_tensors(c), **_tensors(c, a, m)}
    tensors |= sparse_index.index_tensors(c, index, a.q_rank)
    blocks = "|".join(str(i) for i in range(c.layers, c.layers + further))
    unused = [*decoder.harmless(c), *sparse_index.unread(index)]
    unused += [rf"(blk|.*layers)\.({blocks})\..*"] if blocks else []
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    layer = _layers(c, catalog, a, m, index)
    state = [a.state(c.heads, chosen=index is not None)] * c.layers
    if index is None:
        return decoder.normed(c, catalog, layer, decoder.rms_eps(c), state=state)
    return _choosing(c, catalog, layer, [*state, *index.state()], index)


def _choosing(
    c: Config,
    catalog: Catalog,
    layer: Callable[..., str],
    state: Sequence[PagedKV],
    index: sparse_index.SparseIndex,
) -> Model:
    """The Model whose rows see chosen keys, which may go from layer to layer beside x."""

    def head(b: Builder, row: str) -> str:
        x, _ = index.split(b, row, c.width)
        return decoder.head(b, c, b.rms_norm(x, "output_norm.weight", decoder.rms_eps(c)))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: index.begin(b, b.embed("token_embd.weight"), c.width),
        layer=layer,
        head=head,
        state=state,
        hidden=c.width + index.carried,
    )


def build_mtp(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The block that predicts further tokens: one more layer behind the others."""
    c, a, _ = _read(file, architecture, context)
    i, m = c.layers, experts.read_mixture(c, scoring=_scoring(c))
    if m is not None:
        m = replace(m, layers=(*m.layers, m.layers[-1]))
    c = replace(c, layers=i + 1, windows=(*c.windows, 0))
    tensors = mtp.block_tensors(c, _tensors(c, a, m), i, mtp.BEHIND)
    # All else of the file is the model's.
    catalog = Catalog(file, tensors, 1, harmless=(".*",))
    layer = _layers(c, catalog, a, m)
    state = [a.state(c.heads)]
    return mtp.block_model(c, catalog, i, lambda b, x: layer(b, x, i, 0), decoder.rms_eps(c), state)


def _read(
    file: ModelFile, architecture: str, context: int | None
) -> tuple[Config, latent.Latent, int]:
    """The sizes without blocks that predict further tokens, and how many of them there may be."""
    c = read_config(file, architecture, context, experts=True, latent=True)
    gguf = c.keys.kind == "gguf"
    further = c.keys.integer("next_token_layers", 0, low=0, high=c.layers - 1) if gguf else 0
    c = replace(c, layers=c.layers - further, windows=c.windows[: c.layers - further])
    c, a = latent.read_latent(c, absorbed="blk.0.attn_k_b.weight" in file.tensors)
    return c, a, further if gguf else 1


def _tensors(c: Config, a: latent.Latent, m: experts.Mixture | None) -> dict[str, Tensor]:
    tensors = {
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **latent.latent_tensors(c, a),
        **experts.mixture_tensors(c, m),
    }
    if c.architecture == "AXK1ForCausalLM":
        # Layers without experts have one, too, which nobody uses.
        name = "{p}layers.{i}.post_mlp_layernorm.weight"
        tensors["blk.{i}.post_ffw_norm.weight"] = Tensor(name, (c.width,), optional=True)
    return tensors


def _layers(
    c: Config,
    catalog: Catalog,
    a: latent.Latent,
    m: experts.Mixture | None,
    index: sparse_index.SparseIndex | None = None,
) -> Callable[..., str]:
    """What builds a layer, of x, its number and that of its state where that is another one."""
    rope, score_scale = positions(c)
    eps = decoder.rms_eps(c)
    # llama.cpp leaves the scales beside weights out in the older two.
    scaled = c.architecture not in ("deepseek2", "mistral4")

    def layer(b: Builder, x: str, i: int, state: int | None = None) -> str:
        seen: list[str] = []

        def choose(x: str, query: str) -> str:
            if index is not None and index.full[i]:
                seen.append(index.choose(b, x, query, i, rope))
            return seen[-1]

        if index is not None:
            x, known = index.split(b, x, c.width)
            seen.append(known)
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        h = latent.attention(
            b,
            c,
            catalog,
            a,
            h,
            i,
            rope=rope,
            eps=latent.inner_eps(c, eps),
            score_scale=score_scale,
            layer=state,
            choose=None if index is None else choose,
        )
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        h = experts.feed_forward(b, catalog, m, h, i, scaled=scaled)
        if c.architecture == "AXK1ForCausalLM" and m is not None and m.layers[i]:
            h = b.rms_norm(h, f"blk.{i}.post_ffw_norm.weight", eps)
        x = b.add(x, h)
        return x if index is None else index.beside(b, x, seen[-1])

    return layer


def _scoring(c: Config) -> str:
    """Of routers where the file does not say."""
    by_sigmoid = c.architecture in _BY_SIGMOID
    # Early GGUF files of GLM-4.7-Flash are told by their sizes.
    flash = c.architecture == "deepseek2" and c.layers in (47, 48) and c.vocab == 154880
    return "sigmoid" if by_sigmoid or flash else "softmax"


def positions(c: Config) -> tuple[Rope, float]:
    """Rotary positions, and what the scores are multiplied with where YaRN stretches them.

    Both readers of these files turn a key by a magnitude of 1 and let the scores grow by the
    square of what ``mscale_all_dim`` says.
    """
    neighbours = c.keys.kind == "gguf" or c.keys.flag("rope_neighbours", True)
    rope = read_rope(c, "interleaved" if neighbours else "neox")
    factor, multiplier = 1.0, 0.0
    if c.keys.kind == "gguf":
        if c.keys.text("rope_type", "none") == "yarn":
            factor = c.keys.number("rope_factor", 1.0, low=1.0, high=1e6)
            multiplier = c.keys.number("rope_log_multiplier", 0.0, high=1e3) / 0.1
            rope = replace(rope, mscale=1.0 if multiplier else 1 + 0.1 * math.log(factor))
    else:
        # read_rope has found an object, and its factor a number.
        table = c.keys.raw("rope_parameters") or c.keys.raw("rope_scaling") or {}
        if table.get("rope_type", table.get("type")) == "yarn" and table.get("mscale_all_dim"):
            factor = real("factor", table["factor"], 1e-3, 1e6)
            multiplier = real("mscale_all_dim", table["mscale_all_dim"], 0.0, 1e3)
    growth = 1 + 0.1 * multiplier * math.log(max(factor, 1.0))
    growth *= rope.mscale if c.keys.kind == "gguf" else 1.0
    return rope, growth * growth
