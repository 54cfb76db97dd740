"""SmolLM2's tokenizer, cut or padded to the vocabulary of a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from strata.errors import UsageError

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5
_KEPT = (
    *("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix"),
    *("tokenizer.ggml.add_bos_token", "tokenizer.chat_template"),
    *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown", "padding")),
)


class SizedVocabulary:
    """``size`` tokens: those of a byte-level BPE tokenizer, as the GGUF ``metadata`` of a model has
    it, then unused ones. Of a smaller one the last are left out with the merges that make them.

    UsageError if ``size`` leaves no room for the single bytes.
    """

    def __init__(self, metadata: Mapping[str, Any], size: int) -> None:
        tokens: list[str] = metadata["tokenizer.ggml.tokens"][:size]
        types = np.asarray(metadata["tokenizer.ggml.token_type"], np.int32)[:size]
        known = set(tokens)
        # Merges come in the order of the tokens that they make, so a cut leaves a whole tokenizer.
        self.merges: list[str] = [
            merge for merge in metadata["tokenizer.ggml.merges"] if merge.replace(" ", "") in known
        ]
        if not self.merges:
            raise UsageError(f"a vocabulary of {size} tokens is too small for single bytes")
        self.real = len(tokens)
        self.tokens = [*tokens, *(f"[UNUSED_{i}]" for i in range(len(tokens), size))]
        self.types = np.full(size, _UNUSED, np.int32)
        self.types[: len(types)] = types
        self._metadata = metadata

    def gguf(self) -> dict[str, Any]:
        """The keys of a GGUF file."""
        kept = {key: self._metadata[key] for key in _KEPT if key in self._metadata}
        return {
            **kept,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            "tokenizer.ggml.merges": self.merges,
        }

    def tokenizer_json(self) -> dict[str, Any]:
        """The object of a tokenizer.json that does the same (digits apart, then GPT-2's split)."""
        control = [i for i, kind in enumerate(self.types) if kind == _CONTROL]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": self.tokens[i],
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for i in control
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {**byte_level, "use_regex": True},
                ],
            },
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(self.tokens)},
                "merges": self.merges,
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        """The object of a tokenizer_config.json."""
        names = {
            f"{name}_token": self.tokens[self._metadata[f"tokenizer.ggml.{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"))
        }
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "pad_token": names["eos_token"],
            "add_bos_token": False,
            "chat_template": self._metadata["tokenizer.chat_template"],
        }
