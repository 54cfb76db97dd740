"""From a model file's header to a Model: a table of families, one file each, and their aliases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.formats.header_only import Blank
from strata.models.config import read_trained_context
from strata.models.embedding import POOLINGS, Pooling, embedding_model, read_pooling
from strata.models.errors import (
    ConfigError,
    MissingTensor,
    ModelError,
    TensorAxes,
    TensorShape,
    TensorType,
    UnexpectedTensor,
    UnknownArchitecture,
)
from strata.models.keys import Keys, architecture
from strata.models.rope import has_factors_by_context
from strata.models.tensors import Wanted
from strata.program import Model

if TYPE_CHECKING:
    from strata.models.variants import Variant

Build = Callable[[ModelFile, str, int | None], Model]
"""(file, architecture as GGUF keys spell it, context or None) -> Model."""

# One row a name: `general.architecture` of GGUF, `architectures` or `model_type` of config.json,
# and the Build behind it, whose module of this package is imported when a file asks for it.
FAMILIES: Mapping[str, str] = {
    "llama": "llama.build_windowed",
    "LlamaForCausalLM": "llama.build",
    "LLaMAForCausalLM": "llama.build",
    "InternLM3ForCausalLM": "llama.build",
    "YiForCausalLM": "llama.build",
    "AquilaForCausalLM": "llama.build",
    "yi": "llama.build",
    "smollm": "llama.build",
    "mistral": "llama.build_windowed",
    "MistralForCausalLM": "llama.build_windowed",
    "qwen2": "qwen2.build",
    "Qwen2ForCausalLM": "qwen2.build",
    "MixtralForCausalLM": "llama.build_windowed",
    "qwen3moe": "qwen3moe.build",
    "Qwen3MoeForCausalLM": "qwen3moe.build",
    "qwen3": "qwen3.build",
    "Qwen3ForCausalLM": "qwen3.build",
    "gemma2": "gemma2.build",
    "Gemma2ForCausalLM": "gemma2.build",
    "VaultGemmaForCausalLM": "gemma2.build",
    "gemma3": "gemma3.build",
    "gemma3_text": "gemma3.build",
    "Gemma3ForCausalLM": "gemma3.build",
    "Gemma3ForConditionalGeneration": "gemma3.build",
    "gemma3n": "gemma3n.build",
    "gemma3n_text": "gemma3n.build",
    "Gemma3nForCausalLM": "gemma3n.build",
    "Gemma3nForConditionalGeneration": "gemma3n.build",
    "gemma4": "gemma4.build",
    "gemma4_text": "gemma4.build",
    "Gemma4ForCausalLM": "gemma4.build",
    "Gemma4ForConditionalGeneration": "gemma4.build",
    "gemma4_unified_text": "gemma4.build",
    "Gemma4UnifiedForCausalLM": "gemma4.build",
    "Gemma4UnifiedForConditionalGeneration": "gemma4.build",
    "phi3": "phi3.build",
    "Phi3ForCausalLM": "phi3.build",
    "olmo2": "olmo2.build",
    "Olmo2ForCausalLM": "olmo2.build",
    "olmo3": "olmo2.build_windowed",
    "Olmo3ForCausalLM": "olmo2.build_windowed",
    "OlmoHybridForCausalLM": "olmo_hybrid.build",
    "granite": "granite.build",
    "GraniteForCausalLM": "granite.build",
    "deepseek2": "deepseek2.build",
    "deepseek32": "deepseek2.build",
    "glm-dsa": "deepseek2.build",
    "mistral4": "deepseek2.build",
    "AXK1ForCausalLM": "deepseek2.build",
    "DeepseekV2ForCausalLM": "deepseek2.build",
    "DeepseekV3ForCausalLM": "deepseek2.build",
    "DeepseekV32ForCausalLM": "deepseek2.build",
    "Glm4MoeLiteForCausalLM": "deepseek2.build",
    "GlmMoeDsaForCausalLM": "deepseek2.build",
    "Mistral4ForCausalLM": "deepseek2.build",
    "YoutuForCausalLM": "deepseek2.build",
    "minicpm3": "minicpm3.build",
    "MiniCPM3ForCausalLM": "minicpm3.build",
    "llama4": "llama4.build",
    "llama4_text": "llama4.build",
    "Llama4ForCausalLM": "llama4.build",
    "Llama4ForConditionalGeneration": "llama4.build",
    "mimo2": "mimo2.build",
    "MiMoV2FlashForCausalLM": "mimo2.build",
    "afmoe": "afmoe.build",
    "AfmoeForCausalLM": "afmoe.build",
    "hy_v3": "hy_v3.build",
    "HYV3ForCausalLM": "hy_v3.build",
    "minimax-m3": "minimax_m3.build",
    "MiniMaxM3VLForCausalLM": "minimax_m3.build",
    "laguna": "laguna.build",
    "LagunaForCausalLM": "laguna.build",
    "maple": "maple.build",
    "dots3note": "dots3note.build",
    "Dots3NoteForCausalLM": "dots3note.build",
    "hy_v4": "hy_v4.build",
    "HYV4ForCausalLM": "hy_v4.build",
    "hrm_text": "hrm_text.build",
    "HrmTextForCausalLM": "hrm_text.build",
    "gpt2": "gpt2.build",
    "GPT2LMHeadModel": "gpt2.build",
    "opt": "opt.build",
    "mamba": "mamba.build",
    "MambaForCausalLM": "mamba.build",
    "FalconMambaForCausalLM": "mamba.build",
    "mamba2": "mamba.build2",
    "Mamba2ForCausalLM": "mamba.build2",
    "granitehybrid": "granite_hybrid.build",
    "GraniteMoeHybridForCausalLM": "granite_hybrid.build",
    "BambaForCausalLM": "granite_hybrid.build",
    "jamba": "jamba.build",
    "JambaForCausalLM": "jamba.build",
    "falcon-h1": "falcon_h1.build",
    "FalconH1ForCausalLM": "falcon_h1.build",
    "nemotron_h": "nemotron_h.build",
    "nemotron_h_moe": "nemotron_h.build",
    "NemotronHForCausalLM": "nemotron_h.build",
    "lfm2": "lfm2.build",
    "lfm2moe": "lfm2.build",
    "Lfm2ForCausalLM": "lfm2.build",
    "Lfm2MoeForCausalLM": "lfm2.build",
    "kimi-linear": "kimi_linear.build",
    "kimi-k3": "kimi_k3.build",
    "glm5-next": "glm5_next.build",
    "qwen4exp": "qwen4exp.build",
    "KimiLinearForCausalLM": "kimi_linear.build",
    "bailingmoe3": "kimi_linear.build_ling",
    "BailingHybridForCausalLM": "kimi_linear.build_ling",
    "minimax-01": "minimax_01.build",
    "MiniMaxForCausalLM": "minimax_01.build",
    "plamo2": "plamo2.build",
    "rwkv6": "rwkv6.build",
    "rwkv6qwen2": "rwkv6.build_qwen",
    "rwkv7": "rwkv7.build",
    "arwkv7": "rwkv7.build_qwen",
    "qwen35": "qwen35.build",
    "qwen35moe": "qwen35.build",
    "qwen3next": "qwen3next.build",
    "Qwen3NextForCausalLM": "qwen3next.build",
    "qwen3_5_text": "qwen35.build",
    "Qwen3_5ForCausalLM": "qwen35.build",
    "Qwen3_5ForConditionalGeneration": "qwen35.build",
    "qwen3_5_moe_text": "qwen35.build",
    "Qwen3_5MoeForCausalLM": "qwen35.build",
    "Qwen3_5MoeForConditionalGeneration": "qwen35.build",
    "OPTForCausalLM": "opt.build",
}


def families() -> list[str]:
    """All names that are known: rows of the table above, and of those of variations."""
    from strata.models import directories, encoder, mixtures, text_parts, variants

    rows = (mixtures.HUGGING_FACE, directories.DENSE, variants.GGUF, text_parts.WRAPPERS)
    return sorted({name for table in (FAMILIES, encoder.FAMILIES, *rows) for name in table})


def _builder(name: str) -> Build | None:
    """What builds the files of this name, None where nobody does."""
    if name in FAMILIES:
        module, function = FAMILIES[name].split(".")
        build: Build = getattr(import_module(f"strata.models.{module}"), function)
        return build
    from strata.models import composed, encoder

    row = _row(name)
    return encoder.FAMILIES.get(name) if row is None else partial(composed.build, v=row)


def _row(name: str) -> Variant | None:
    """The variation of this name, None where it is none."""
    from strata.models import directories, mixtures, variants

    tables = (variants.GGUF, mixtures.HUGGING_FACE, directories.DENSE)
    return next((table[name] for table in tables if name in table), None)


def trained_context(file: ModelFile) -> int:
    """The positions that a model was made for. Raises a ModelError."""
    name, _ = _known(file)
    row = None if name in FAMILIES else _row(name)
    if row is None:
        return read_trained_context(Keys(file, name))
    from strata.models import composed

    return read_trained_context(composed.keys_of(file, name, row))


def with_context(file: ModelFile, model: Model, context: int) -> Model:
    """``model``, which was built from ``file``, for other positions.

    What depends on the context beside its length is the choice of rope factors: only a model that
    has such a choice is built again.
    """
    if not has_factors_by_context(file):
        return replace(model, context_length=context)
    return build_model(file, context)


def build_model(file: ModelFile, context: int | None = None) -> Model:
    """The Model that a file describes, from its header alone.

    ``context`` limits the positions used (default: all that the model was made for) and thereby
    chooses between long and short rope factors. Raises a ModelError or, for a context that the
    model does not have, UsageError.
    """
    name, build = _known(file)
    return build(file, name, context)


def wanted_tensors(file: Blank) -> Wanted:
    """The tensors that the family of ``file`` looks for. Raises a ModelError for its metadata."""
    try:
        build_model(file)
    except Wanted as found:
        return found
    raise AssertionError("a Model was built of nothing")


def _known(file: ModelFile) -> tuple[str, Build]:
    name = architecture(file)
    build = _builder(name)
    if build is None:
        from strata.models.refused import REFUSED

        if name in REFUSED:
            raise UnknownArchitecture(f"{shown(name)} is not built: {REFUSED[name]}")
        # GGUF writes names small, directories those of classes.
        classes = file.kind == "huggingface"
        known = ", ".join(n for n in families() if (n != n.lower()) == classes)
        raise UnknownArchitecture(f"architecture {shown(name)} is not known; known: {known}")
    return name, build


__all__ = [
    "FAMILIES",
    "POOLINGS",
    "ConfigError",
    "MissingTensor",
    "ModelError",
    "Pooling",
    "TensorAxes",
    "TensorShape",
    "TensorType",
    "UnexpectedTensor",
    "UnknownArchitecture",
    "Wanted",
    "architecture",
    "build_model",
    "embedding_model",
    "families",
    "read_pooling",
    "trained_context",
    "wanted_tensors",
    "with_context",
]
