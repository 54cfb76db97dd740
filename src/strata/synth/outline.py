"""From a shape to a header: metadata and tensors, of a GGUF file or a Hugging Face directory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from strata.errors import UsageError
from strata.formats import TensorInfo
from strata.formats.header_only import Blank, HeaderOnly
from strata.models import build_model, wanted_tensors
from strata.models.tensors import Tensor
from strata.quant import BlockType, by_name
from strata.records import dataclass
from strata.synth.recipes import RECIPES, Place, tensor_type
from strata.synth.shape import Shape

# Family -> (GGUF's architecture, `architectures` and `model_type` of config.json).
HUGGING_FACE: Mapping[str, tuple[str, str, str]] = {
    "llama": ("llama", "LlamaForCausalLM", "llama"),
    "mistral": ("llama", "MistralForCausalLM", "mistral"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", "qwen3"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("gemma3", "Gemma3ForCausalLM", "gemma3_text"),
    "mixtral": ("llama", "MixtralForCausalLM", "mixtral"),
    "qwen3moe": ("qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe"),
    "phi3": ("phi3", "Phi3ForCausalLM", "phi3"),
    "mamba2": ("mamba2", "Mamba2ForCausalLM", "mamba2"),
    "granite_hybrid": ("granitehybrid", "GraniteMoeHybridForCausalLM", "granitemoehybrid"),
    "lfm2": ("lfm2", "Lfm2ForCausalLM", "lfm2"),
    "qwen35": ("qwen35", "Qwen3_5ForCausalLM", "qwen3_5_text"),
}
# Tensors that files of Mamba-2 keep with a second axis of one entry.
_COLUMNS = ("ssm_a", "ssm_d")
_COLUMNS_IN = ("mamba2", "granitehybrid")
_FEED_FORWARD = re.compile(r"blk\.\d+\.ffn_((gate|up|down)(_exps|_shexp)?|gate_inp)\.weight")
_LLAMA3_ORIGINAL = 8192
_SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


@dataclass(frozen=True)
class SynthTensor:
    """A tensor of a synthetic model; vectors have the value ``fill``, matrices are random."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    fill: float | tuple[float, ...] = 1.0


def config_json(shape: Shape) -> dict[str, Any]:
    """The config.json of a shape."""
    if shape.family not in HUGGING_FACE:
        raise UsageError(f"{shape.name} is described as a GGUF file only; leave --format out")
    _, architecture, model_type = HUGGING_FACE[shape.family]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_base,
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    if shape.family in ("gemma2", "gemma3"):
        config |= {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256 if shape.head_dim == 256 else shape.width // shape.heads,
            "rope_local_base_freq": 10000.0,
        }
    if shape.family == "gemma2":
        config |= _SOFTCAPS
    if shape.experts:
        config |= {
            "num_local_experts" if shape.family == "mixtral" else "num_experts": shape.experts,
            "num_experts_per_tok": shape.top_k,
        }
    if shape.family == "qwen3moe":
        config |= {"moe_intermediate_size": shape.ffn, "norm_topk_prob": True}
    if shape.window:
        config["sliding_window"] = shape.window
    if shape.llama3_factor:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": shape.llama3_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _LLAMA3_ORIGINAL,
        }
    if shape.linear_factor:
        config["rope_scaling"] = {"rope_type": "linear", "factor": shape.linear_factor}
    return {**config, **shape.settings}


def gguf_metadata(shape: Shape, recipe: str) -> dict[str, Any]:
    """The hyperparameters of a shape as GGUF keys."""
    arch = _architecture(shape)
    keys: dict[str, Any] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "rope.freq_base": shape.rope_base,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocab,
    }
    if shape.experts:
        keys |= {"expert_count": shape.experts, "expert_used_count": shape.top_k}
        if not shape.ffn:
            del keys["feed_forward_length"]
    if shape.family == "qwen3moe":
        keys["expert_feed_forward_length"] = shape.ffn
    if shape.window:
        keys["attention.sliding_window"] = shape.window
    if shape.family == "gemma2":
        keys |= _SOFTCAPS
    if shape.linear_factor:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": shape.linear_factor}
    return {
        "general.architecture": arch,
        "general.type": "model",
        # llama.cpp looks for "phi-3" in the name and then expects that model's vocabulary.
        "general.name": "random weights",
        "general.basename": shape.name,
        "general.file_type": RECIPES[recipe][1],
        "general.quantization_version": 2,
        **{f"{arch}.{key}": value for key, value in {**keys, **shape.keys}.items()},
    }


def _architecture(shape: Shape) -> str:
    """As GGUF files call it."""
    return HUGGING_FACE[shape.family][0] if shape.family in HUGGING_FACE else shape.family


def _blank(shape: Shape, recipe: str | None) -> Blank:
    """What a model says before it has tensors."""
    path = Path(shape.name)
    if recipe is None:
        return Blank("huggingface", path, config_json(shape), {})
    table = (shape.vocab, shape.width)
    frame = ("token_embd.weight",) if shape.tied else ("token_embd.weight", "output.weight")
    there: dict[str, tuple[int, ...]] = dict.fromkeys(frame, table)
    there |= {n.replace("{i}", str(i)): (1,) for n in shape.holds for i in range(shape.layers)}
    infos = {n: TensorInfo(n, dims, by_name("F32"), path, 0, 0) for n, dims in there.items()}
    return Blank("gguf", path, gguf_metadata(shape, recipe), infos)


def _stored(shape: Shape, recipe: str | None) -> Iterator[tuple[str, int, Tensor, tuple[int, ...]]]:
    """(name, layer, row of the family's table, shape) of what a file may hold, in its order."""
    huggingface = recipe is None
    wanted = wanted_tensors(_blank(shape, recipe))
    frame = [(name, -1) for name in wanted.tensors if not name.startswith("blk.")]
    layered = [name for name in wanted.tensors if name.startswith("blk.")]
    order = [at for at in frame if at[0].startswith("token_embd.")]
    for i in range(wanted.layers):
        order += [(name, i) for name in layered if name.startswith(("blk.{i}.", f"blk.{i}."))]
    order += [at for at in frame if not at[0].startswith("token_embd.")]
    holds = {name.replace("{i}", str(i)) for i in range(wanted.layers) for name in shape.holds}
    done: set[str] = set()
    for canonical, i in order:
        tensor, dims = wanted.tensors[canonical], wanted.tensors[canonical].shape
        here = canonical.replace("{i}", str(i))
        if tensor.optional and here not in holds and not _FEED_FORWARD.fullmatch(here):
            continue
        part = tensor.part if shape.family == "phi3" or not tensor.apart else None
        if part is None or not (huggingface or part.gguf):
            stored = tensor.huggingface if huggingface else canonical
        else:
            stored = part.huggingface if huggingface else part.gguf
            dims = (part.total, *dims[1:])
        if stored is None:
            continue
        name = stored.replace("{p}", wanted.prefix).replace("{i}", str(i))
        if name in done:
            continue
        done.add(name)
        if "{e}" not in name:
            yield name, i, tensor, dims if huggingface else _as_stored(shape, name, tensor, dims)
            continue
        for e in range(dims[0]):
            yield name.replace("{e}", str(e)), i, tensor, dims[1:]


def _as_stored(shape: Shape, name: str, tensor: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    """With the axes of one entry that GGUF files have."""
    if tensor.unit_axes and name.endswith(_COLUMNS) and _architecture(shape) in _COLUMNS_IN:
        return (dims[0], 1)
    return dims[1:] if tensor.unit_axes and dims[0] == 1 else dims


def gguf_tensors(shape: Shape, recipe: str) -> list[SynthTensor]:
    """The tensors of a GGUF file, under a recipe's name."""
    found = []
    for name, layer, _, dims in _stored(shape, recipe):
        place = Place(
            name,
            layer,
            shape.layers,
            shape.heads // max(shape.kv_heads, 1),
            shape.tied,
            shape.layers == 80 and shape.family in ("llama", "qwen2"),
            shape.experts,
        )
        found.append(SynthTensor(name, dims, tensor_type(recipe, place, dims), _fill(name)))
    if shape.llama3_factor:
        factors = _llama3_factors(shape)
        found.insert(1, SynthTensor("rope_freqs.weight", (len(factors),), by_name("F32"), factors))
    return _used(shape, found, recipe)


def huggingface_tensors(shape: Shape) -> list[SynthTensor]:
    """The tensors of a Hugging Face directory in bf16."""
    return [
        SynthTensor(
            name, dims, by_name("BF16"), 0.0 if tensor.transform == "add_one" else _fill(name)
        )
        for name, _, tensor, dims in _stored(shape, None)
    ]


def _used(shape: Shape, tensors: list[SynthTensor], recipe: str) -> list[SynthTensor]:
    """Without those that the layers of the model do not use: a layer has experts or none."""
    if "leading_dense_block_count" not in shape.keys:
        return tensors
    model = build_model(_header("gguf", shape, gguf_metadata(shape, recipe), tensors))
    used = {weight.source for segment in model.segments for weight in segment.weights}
    return [tensor for tensor in tensors if tensor.name in used]


def _fill(name: str) -> float:
    """Norms are ones; biases are nothing; what decays does so by a factor of e a step."""
    if name.endswith("ssm_a"):
        return -1.0
    return 0.0 if name.endswith(".bias") else 1.0


def _llama3_factors(shape: Shape) -> tuple[float, ...]:
    """What GGUF files divide the plain frequencies by, where config.json names a scaling."""
    model = build_model(describe(shape, None))
    rope = next(op for op in model.segments[1].program.ops if op.kind == "rope")
    dim = shape.head_dim
    plain = shape.rope_base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return tuple(float(f) for f in plain / np.array(rope.attrs["inv_freq"]))


def describe(shape: Shape, recipe: str | None) -> HeaderOnly:
    """The header that a synthetic model has: a GGUF file's, or with ``recipe`` None that of a
    Hugging Face directory. UsageError if no recipe is called that."""
    if recipe is None:
        return _header("huggingface", shape, config_json(shape), huggingface_tensors(shape))
    recipe = known_recipe(recipe)
    return _header("gguf", shape, gguf_metadata(shape, recipe), gguf_tensors(shape, recipe))


def known_recipe(name: str) -> str:
    """``name`` as RECIPES spells it; UsageError if it is not there."""
    if name.upper() not in RECIPES:
        raise UsageError(f"there is no quantisation {name!r} here; known: {', '.join(RECIPES)}")
    return name.upper()


def _header(
    kind: Any, shape: Shape, metadata: Mapping[str, Any], tensors: list[SynthTensor]
) -> HeaderOnly:
    infos, offset = {}, 0
    path = Path(shape.name)
    for t in tensors:
        nbytes = t.type.tensor_nbytes(t.shape)
        infos[t.name] = TensorInfo(t.name, t.shape, t.type, path, offset, nbytes)
        offset += -(-nbytes // 32) * 32
    return HeaderOnly(kind, path, metadata, infos)
