"""GGUF metadata of vocabularies made up for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def metadata(model: str, tokens: Mapping[str, tuple[int, float]], **keys: Any) -> dict[str, Any]:
    """`tokens` maps a text to its type and score; `keys` are those of tokenizer.ggml."""
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [kind for kind, _ in tokens.values()],
        "tokenizer.ggml.scores": [score for _, score in tokens.values()],
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def sentencepiece(words: Mapping[str, float], **keys: Any) -> dict[str, Any]:
    """A `llama` vocabulary: unknown, bos, eos, 256 bytes, two markers, then `words`."""
    tokens = {"<unk>": (UNKNOWN, 0.0), "<s>": (CONTROL, 0.0), "</s>": (CONTROL, 0.0)}
    tokens |= {f"<0x{byte:02X}>": (BYTE, 0.0) for byte in range(256)}
    tokens |= {"<|im_end|>": (CONTROL, 0.0), "<user>": (USER_DEFINED, 0.0)}
    tokens |= {word: (NORMAL, score) for word, score in words.items()}
    return metadata("llama", tokens, **keys)
