"""Goldens: logits of transformers in float32, so that ordinary tests need no torch.

    python tools/make_goldens.py [--smollm2 FILE.gguf] [NAME ...]

For each tiny model below: tests/goldens/NAME.json (config.json and tensor shapes as transformers
writes them, tokens, rows) and NAME.npy (float32 logits of those rows); for the built-in model
tests/goldens/smollm2-logits.npz. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from make_tiny_models import GOLDENS, VOCABULARY, Golden

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": None,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 9.0],
}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


# name -> (configuration class, what it has beside the sizes, context that the test asks for)
MODELS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "llama": ("Llama", {}, None),
    "llama_tied_biased": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 24,
        },
        None,
    ),
    "llama_linear": ("Llama", _rope("linear", factor=4.0), None),
    "llama_dynamic": ("Llama", _rope("dynamic", factor=4.0), None),
    "llama_llama3": (
        "Llama",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        None,
    ),
    "llama_yarn": (
        "Llama",
        _rope("yarn", factor=4.0, original_max_position_embeddings=64),
        None,
    ),
    "mistral_window": ("Mistral", {"sliding_window": 8}, None),
    "qwen2": ("Qwen2", {}, None),
    "qwen2_window_yarn": (
        "Qwen2",
        {
            **_rope("yarn", factor=4.0, original_max_position_embeddings=64),
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "qwen3": ("Qwen3", {"head_dim": 24}, None),
    "gemma2": (
        "Gemma2",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        None,
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 1000000.0,
                    "factor": 8.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        None,
    ),
    "phi3_window": ("Phi3", {"sliding_window": 8}, None),
    "phi3_short": (
        "Phi3",
        {"original_max_position_embeddings": 64, "rope_parameters": dict(_LONG)},
        64,
    ),
    "phi3_long": (
        "Phi3",
        {"original_max_position_embeddings": 16, "rope_parameters": dict(_LONG)},
        None,
    ),
    "olmo2": ("Olmo2", {}, None),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        None,
    ),
    "granite": (
        "Granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "mamba": ("Mamba", {"state_size": 16, "time_step_rank": 4}, None),
    "mamba2": ("Mamba2", {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1}, None),
    "granite_hybrid": (
        "GraniteMoeHybrid",
        {
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
        None,
    ),
    "jamba": (
        "Jamba",
        {
            "num_hidden_layers": 3,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_dt_rank": 4,
        },
        None,
    ),
    "lfm2": (
        "Lfm2",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
        None,
    ),
    "nemotron_h": (
        "NemotronH",
        {
            "num_hidden_layers": 3,
            "hybrid_override_pattern": "M*-",
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 16,
            "head_dim": 16,
        },
        None,
    ),
    "qwen35": (
        "Qwen3_5Text",
        {
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "head_dim": 24,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 24,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
            },
        },
        None,
    ),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, None),
    "opt": ("OPT", {"ffn_dim": 96, "max_position_embeddings": 128}, None),
    "opt_narrow_post_norm": (
        "OPT",
        {
            "ffn_dim": 96,
            "max_position_embeddings": 128,
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 32,
        },
        None,
    ),
}


def tokens(count: int = 32) -> list[int]:
    """A sequence without a pattern, the same everywhere."""
    return [(7 + i * i * 31 + i * 17) % VOCABULARY for i in range(count)]


def model_of(name: str) -> tuple[torch.nn.Module, Golden]:
    """The transformers model with the generated weights, and its description."""
    kind, settings, context = MODELS[name]
    sizes = {"vocab_size": VOCABULARY} if kind == "GPT2" else dict(_SIZES)
    if kind == "OPT":
        del sizes["num_key_value_heads"], sizes["intermediate_size"], sizes["rms_norm_eps"]
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **settings})
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind.removesuffix('Text')}ForCausalLM"
    config._attn_implementation = "eager"
    model = getattr(transformers, head)(config).float().eval()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}
    written = {**json.loads(config.to_json_string(use_diff=False)), "architectures": [head]}
    sequence = tokens()
    rows = list(range(3, len(sequence), 4))
    golden = Golden(name, _lean(written), shapes, sequence, rows, context)
    load(model, golden.weights())
    return model, golden


def load(model: torch.nn.Module, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Fill a model; every tensor of it must be given (a tied head follows its table)."""
    tensors = {name: torch.tensor(array) for name, array in weights.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()


def logits(model: torch.nn.Module, sequence: list[int]) -> np.ndarray[Any, Any]:
    """float32 [tokens, vocabulary]."""
    with torch.no_grad():
        out: np.ndarray[Any, Any] = model(torch.tensor([sequence])).logits[0].float().numpy()
    return out


def _lean(config: dict[str, Any]) -> dict[str, Any]:
    """Without what has nothing to do with the forward pass."""
    noise = ("_name_or_path", "transformers_version", "dtype", "id2label", "label2id")
    noise += ("chunk_size_feed_forward", "return_dict", "output_", "problem_type", "summary_")
    return {k: v for k, v in config.items() if not k.startswith(noise)}


def smollm2(path: Path) -> torch.nn.Module:
    """The transformers model with the weights of a Llama-like GGUF file, dequantised."""
    reader = gguf.GGUFReader(path)

    def key(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    arrays = {t.name: t for t in reader.tensors}
    config = transformers.LlamaConfig(
        vocab_size=int(arrays["token_embd.weight"].shape[1]),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_theta=key("rope.freq_base"),
        tie_word_embeddings="output.weight" not in arrays,
        attn_implementation="eager",
    )
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    model = transformers.LlamaForCausalLM(config).float().eval()
    weights = {}
    for name, tensor in model.state_dict().items():
        stored = table.get_name(name, try_suffixes=(".weight",))
        if stored in arrays:
            array = gguf.quants.dequantize(arrays[stored].data, arrays[stored].tensor_type)
            if "q_proj" in name or "k_proj" in name:
                pairs = array.reshape(
                    heads if "q_proj" in name else kv_heads, -1, 2, array.shape[1]
                )
                array = pairs.swapaxes(1, 2)
            weights[name] = np.ascontiguousarray(array).reshape(tensor.shape)
    load(model, weights)
    return model


def write_smollm2(path: Path) -> None:
    """All logits of the last row, and every 97th of each row."""
    # "The capital of France is Paris.", then tokens without a pattern.
    sequence = [
        504,
        3575,
        282,
        4649,
        314,
        7042,
        30,
        *((i * i * 311 + 5) % 49152 for i in range(41)),
    ]
    found = logits(smollm2(path), sequence)
    sampled = np.ascontiguousarray(found[:, ::97])
    np.savez(
        GOLDENS / "smollm2-logits.npz", tokens=np.array(sequence), last=found[-1], sampled=sampled
    )


def main() -> None:
    """Write the goldens asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--smollm2", metavar="FILE.gguf", help="the built-in model's file")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.smollm2:
        write_smollm2(Path(arguments.smollm2))
    for name in arguments.names or ([] if arguments.smollm2 else MODELS):
        model, golden = model_of(name)
        fields = {
            "config": golden.config,
            "shapes": golden.shapes,
            "tokens": golden.tokens,
            "rows": golden.rows,
            "context": golden.context,
        }
        (GOLDENS / f"{name}.json").write_text(json.dumps(fields, indent=1) + "\n")
        np.save(GOLDENS / f"{name}.npy", logits(model, golden.tokens)[golden.rows])


if __name__ == "__main__":
    main()
