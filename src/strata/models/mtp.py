"""Blocks that predict the token after the next one (multi-token prediction), as a Model of their
own: of what the last layer of the model before them gave at a position, and of the token behind it.

Source: DeepSeek-V3, arXiv 2412.19437, section 2.2. What goes in is the model's last norm, as
vLLM and llama.cpp have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module

from strata.errors import UsageError
from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config
from strata.models.keys import architecture
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, LayerState, Model
from strata.program.model import Transform
from strata.program.program import Shape
from strata.records import dataclass

# As in ``models.FAMILIES``.
_FAMILIES: Mapping[str, str] = {
    "qwen35": "qwen35.build_mtp",
    "qwen35moe": "qwen35.build_mtp",
    "qwen3_5_text": "qwen35.build_mtp",
    "Qwen3_5ForCausalLM": "qwen35.build_mtp",
    "Qwen3_5ForConditionalGeneration": "qwen35.build_mtp",
    "qwen3_5_moe_text": "qwen35.build_mtp",
    "Qwen3_5MoeForCausalLM": "qwen35.build_mtp",
    "Qwen3_5MoeForConditionalGeneration": "qwen35.build_mtp",
    "qwen3next": "qwen35.build_mtp",
    "Qwen3NextForCausalLM": "qwen35.build_mtp",
    "deepseek2": "deepseek2.build_mtp",
    "deepseek32": "deepseek2.build_mtp",
    "glm-dsa": "deepseek2.build_mtp",
    "DeepseekV3ForCausalLM": "deepseek2.build_mtp",
    "DeepseekV32ForCausalLM": "deepseek2.build_mtp",
    "Glm4MoeLiteForCausalLM": "deepseek2.build_mtp",
    "GlmMoeDsaForCausalLM": "deepseek2.build_mtp",
}
_ENTRY = ("eh_proj.weight", "mtp.fc.weight")


@dataclass(frozen=True)
class Names:
    """What directories call the tensors of a block: those of its layer begin with ``layer``, and
    its own by GGUF's names."""

    layer: str
    own: Mapping[str, str]


BESIDE = Names(
    "mtp.layers.0.",
    {
        "eh_proj": "mtp.fc",
        "enorm": "mtp.pre_fc_norm_embedding",
        "hnorm": "mtp.pre_fc_norm_hidden",
        "shared_head_norm": "mtp.norm",
        "embed_tokens": "mtp.embed_tokens",
        "shared_head_head": "mtp.lm_head",
    },
)
"""Beside the model's layers."""

_LAYER = "{p}layers.{i}."
BEHIND = Names(
    _LAYER,
    {
        "eh_proj": f"{_LAYER}eh_proj",
        "enorm": f"{_LAYER}enorm",
        "hnorm": f"{_LAYER}hnorm",
        "shared_head_norm": f"{_LAYER}shared_head.norm",
        "embed_tokens": f"{_LAYER}embed_tokens",
        "shared_head_head": f"{_LAYER}shared_head.head",
    },
)
"""As a layer behind the model's."""


def mtp_model(file: ModelFile, context: int) -> Model:
    """The first such block of a file: a Segment for what comes from the model (``enter``), the
    block, and the head. UsageError where there is none, or none that is known; a ModelError where
    it is incomplete."""
    name = architecture(file)
    if name not in _FAMILIES:
        raise UsageError(
            f"blocks of '{name}' models that predict further tokens are not known: "
            f"give a smaller model, or self:N"
        )
    if not any(tensor.endswith(_ENTRY) for tensor in file.tensors):
        raise UsageError(
            f"{file.path.name} has no block that predicts further tokens: "
            f"give a smaller model, or self:N"
        )
    module, function = _FAMILIES[name].split(".")
    model: Model = getattr(import_module(f"strata.models.{module}"), function)(file, name, context)
    return model


def block_tensors(
    c: Config,
    layer: Mapping[str, Tensor],
    i: int,
    names: Names,
    transform: Transform = "none",
) -> dict[str, Tensor]:
    """The tensors of a block that GGUF files have as layer ``i``: what it has of a ``layer`` of its
    family, and what is its own."""

    def stored(name: str) -> str:
        return name.replace(_LAYER, names.layer)

    tensors: dict[str, Tensor] = {}
    for name, tensor in layer.items():
        part = tensor.part and replace(tensor.part, huggingface=stored(tensor.part.huggingface))
        theirs = tensor.huggingface and stored(tensor.huggingface)
        tensors[name] = replace(tensor, huggingface=theirs, part=part)
    table, norm = (c.vocab, c.width), (c.width,)
    for name, shape, optional in (
        ("eh_proj", (c.width, 2 * c.width), False),
        ("enorm", norm, False),
        ("hnorm", norm, False),
        ("shared_head_norm", norm, True),
        ("embed_tokens", table, True),
        ("shared_head_head", table, True),
    ):
        turned = transform if shape == norm else "none"
        own = Tensor(f"{names.own[name]}.weight", shape, optional, turned)
        tensors[f"blk.{{i}}.nextn.{name}.weight"] = own
    return {**decoder.frame_tensors(c, transform), **on_layers(tensors, [i])}


def block_model(
    c: Config,
    catalog: Catalog,
    i: int,
    layer: Callable[[Builder, str], str],
    eps: float,
    state: Sequence[LayerState],
) -> Model:
    """The Model of a block around this ``layer``, whose ``state`` may grow while it is built."""
    own = f"blk.{i}.nextn."
    rows: dict[str, Shape] = {"x": ("T", c.width)}
    enter = Builder("enter", catalog, rows)
    segments = [enter.build(x=enter.rms_norm("x", "output_norm.weight", eps))]
    b = Builder(f"layer.{i}", catalog, rows)
    table = decoder.present(catalog, f"{own}embed_tokens.weight") or "token_embd.weight"
    token = b.rms_norm(b.embed(table), f"{own}enorm.weight", eps)
    given = b.rms_norm("x", f"{own}hnorm.weight", eps)
    x = b.matmul(b.join(token, given, heads=1), f"{own}eh_proj.weight")
    norm = decoder.present(catalog, f"{own}shared_head_norm.weight") or "output_norm.weight"
    segments.append(b.build(x=b.rms_norm(layer(b, x), norm, eps)))
    last = Builder("head", catalog, rows)
    head = decoder.present(catalog, f"{own}shared_head_head.weight")
    x = last.select("x")
    logits = last.matmul(x, head) if head else decoder.head(last, c, x)
    segments.append(last.build(logits=logits))
    return Model(c.architecture, tuple(segments), tuple(state), c.vocab, c.width, c.context)
