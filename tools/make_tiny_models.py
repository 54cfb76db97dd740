"""Tiny models of every family, the same bits on every machine, without torch.

    python tools/make_tiny_models.py DIRECTORY [NAME ...]

Each model is rebuilt from tests/goldens/NAME.json (its config.json and the shapes of its tensors,
as transformers wrote them; see make_goldens.py): DIRECTORY/NAME is a Hugging Face directory, and
DIRECTORY/NAME.gguf the same model as GGUF where that architecture exists there. Weights come from
a counter-based generator keyed by the tensor's name.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens"

Floats = NDArray[np.float32]
Arrays = dict[str, Floats]

# Families whose converter turns q and k so that rotated pairs are neighbours.
_PERMUTED = ("llama", "granite")
_GGUF_NAMES = {"mistral": "llama", "gemma3_text": "gemma3", "olmo3": "olmo2"}
# Families of which llama.cpp's own tiny files have shown the GGUF names to be right.
_RECURRENT = (
    *("mamba", "mamba2", "granitemoehybrid", "jamba", "lfm2", "nemotron_h", "qwen3_5_text"),
)
_MERGES = [
    *("t h", "h e", "i n", "Ġ t", "a n", "e r", "o n", "Ġ a"),
    *("r e", "Ġt he", "in g", "an d", "o f", "e d", "Ġ s"),
]
END = "<|end|>"
VOCABULARY = 256 + len(_MERGES) + 1


@dataclass(frozen=True)
class Golden:
    """A tiny model and the logits of transformers: rows of positions ``rows`` for ``tokens``."""

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tokens: list[int]
    rows: list[int]
    context: int | None

    @property
    def architecture(self) -> str | None:
        """The GGUF architecture; None if there is none, or none that has all of this model."""
        kind = self.config["model_type"]
        if kind == "opt" or kind in _RECURRENT or self.config.get("use_sliding_window"):
            return None
        return _GGUF_NAMES.get(kind, kind)

    def logits(self) -> Floats:
        """[rows, vocabulary]."""
        array: Floats = np.load(GOLDENS / f"{self.name}.npy")
        return array

    def weights(self) -> Arrays:
        """All tensors under their Hugging Face names."""
        return {name: weight(name, shape) for name, shape in self.shapes.items()}


def golden(name: str) -> Golden:
    """Read one golden's description."""
    fields = json.loads((GOLDENS / f"{name}.json").read_text())
    fields["shapes"] = {k: tuple(v) for k, v in fields["shapes"].items()}
    return Golden(name, **fields)


def names() -> list[str]:
    """All tiny models."""
    return sorted(p.stem for p in GOLDENS.glob("*.npy"))


def weight(name: str, shape: tuple[int, ...]) -> Floats:
    """Uniform values with the spread that the role of the tensor calls for."""
    bits = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    values = (uniform * math.sqrt(3)).reshape(shape)
    if len(shape) == 1:
        # Norm weights lie around 1 (Gemma's around 0, which its files mean by 1), biases around 0.
        values = 0.2 * values + (1.0 if name.endswith("weight") else 0.0)
    elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
        # Tables are often heads too: logits of size 1 leave no token alone with all probability.
        values = 0.25 * values
    else:
        values = values / math.sqrt(shape[0] if "c_" in name else shape[1])
    return values.astype(np.float32)


def write_directory(path: Path, golden: Golden) -> Path:
    """Write a Hugging Face directory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(golden.config))
    (path / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    save_file(golden.weights(), path / "model.safetensors")
    return path


def write_gguf(path: Path, golden: Golden) -> Path:
    """Write a GGUF file as llama.cpp's converter would name and turn things."""
    writer = _writer(golden, path)
    for name, array in gguf_arrays(golden).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_keys(golden: Golden) -> dict[str, Any]:
    """The metadata that the GGUF file would hold."""
    return {key: value.value for key, value in _writer(golden, None).kv_data[0].items()}


def _writer(golden: Golden, path: Path | None) -> gguf.GGUFWriter:
    architecture = golden.architecture
    assert architecture is not None, f"{golden.name}: no GGUF architecture"
    writer = gguf.GGUFWriter(path, architecture)
    _write_keys(writer, golden.config, architecture)
    _write_vocabulary(writer)
    return writer


def gguf_arrays(golden: Golden) -> Arrays:
    """The tensors under their GGUF names, rows first."""
    config, architecture = golden.config, golden.architecture
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    table = gguf.get_tensor_name_map(kinds[architecture], layers)
    heads = config.get("num_attention_heads", config.get("n_head"))
    kv_heads = config.get("num_key_value_heads", heads)
    arrays: Arrays = {}
    for name, array in golden.weights().items():
        if architecture in _PERMUTED and ("q_proj" in name or "k_proj" in name):
            array = _neighbours(array, heads if "q_proj" in name else kv_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if architecture == "gpt2" and "c_" in name and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        stored = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"no GGUF name for {name}"
        arrays[stored] = array
    rope = _rope(config)
    if rope.get("rope_type") == "llama3":
        arrays["rope_freqs.weight"] = _llama3_factors(config, rope)
    for span in ("long", "short"):
        if f"{span}_factor" in rope:
            arrays[f"rope_factors_{span}.weight"] = np.array(rope[f"{span}_factor"], np.float32)
    return arrays


def _neighbours(array: Floats, heads: int) -> Floats:
    """Rows (i, i + half) of each head become (2i, 2i + 1)."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or {}
    return rope.get("full_attention", rope) or {}


def _llama3_factors(config: Mapping[str, Any], rope: Mapping[str, Any]) -> Floats:
    """What each frequency is divided by, as Llama 3.1's reference code gives it."""
    dim = config["head_dim"]
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (
            rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
        ) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _write_keys(writer: gguf.GGUFWriter, config: Mapping[str, Any], architecture: str) -> None:
    width = config.get("hidden_size", config.get("n_embd"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    context = config.get("max_position_embeddings", config.get("n_positions"))
    head_dim = config.get("head_dim") or width // heads
    writer.add_block_count(config.get("num_hidden_layers", config.get("n_layer")))
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * width)
    writer.add_head_count(heads)
    if "layer_norm_epsilon" in config:
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = _rope(config)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("longrope", "yarn"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        growth = math.log(context / original) / math.log(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + growth))
    window = config.get("sliding_window")
    if window and architecture in ("llama", "gemma2", "gemma3", "phi3", "olmo2"):
        writer.add_sliding_window(window)
        if "layer_types" in config:
            writer.add_sliding_window_pattern(
                [kind == "sliding_attention" for kind in config["layer_types"]]
            )
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if config.get(key):
            add(config[key])


def _byte_names() -> list[str]:
    """One printable character a byte, as GPT-2's vocabulary has them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def _tokens() -> list[str]:
    return [*_byte_names(), *(m.replace(" ", "") for m in _MERGES), END]


def _write_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = _tokens()
    types = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_MERGES)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def _tokenizer() -> dict[str, Any]:
    tokens = _tokens()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": len(tokens) - 1, "content": END, "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _MERGES,
        },
    }


def main() -> None:
    """Write the models asked for, or all."""
    target = Path(sys.argv[1])
    for name in sys.argv[2:] or names():
        model = golden(name)
        write_directory(target / name, model)
        if model.architecture is not None:
            write_gguf(target / f"{name}.gguf", model)


if __name__ == "__main__":
    main()
