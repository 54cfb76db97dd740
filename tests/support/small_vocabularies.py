"""GGUF metadata of vocabularies made up for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.text.bpe import BYTE_LETTERS

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


def joining(merges: list[str], **keys: Any) -> dict[str, Any]:
    """A byte-level vocabulary whose tokens reach over words, spaces, digits and lines, so that ids
    show where a pre-tokenizer cuts; `merges` are those of the goldens."""
    tokens = dict.fromkeys(BYTE_LETTERS, (NORMAL, 0.0))
    tokens |= {f"<0x{byte:02X}>": (BYTE, 0.0) for byte in range(256)}
    tokens |= {merge.replace(" ", ""): (NORMAL, 0.0) for merge in merges}
    tokens |= {"<|end|>": (CONTROL, 0.0), "<mark>": (USER_DEFINED, 0.0)}
    end = list(tokens).index("<|end|>")
    return metadata("gpt2", tokens, merges=merges, bos_token_id=end, eos_token_id=end, **keys)


_TEXT = """the quick brown fox does n't jump over it s un able ing école strasse ди он дом мир 今天
天 漢字 日本語 テキスト 한국 어 ไทย नमस्ते family code 12 345 2024 aa aaaa ab != ... '' """
_WORDS = _TEXT.split()
_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-+=/ıłßσς"
_LETTERS = sorted(set("".join(_WORDS)) | set(_SIGNS))


def wordpiece(**keys: Any) -> dict[str, Any]:
    """A `bert` vocabulary: special tokens, words as beginnings and continuations, letters."""
    tokens = {f"[{name}]": (CONTROL, 0.0) for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    tokens |= {mark + text: (NORMAL, 0.0) for text in (*_WORDS, *_LETTERS) for mark in ("▁", "")}
    ids = {"bos": 2, "unknown": 1, "seperator": 3, "padding": 0, "mask": 4}
    return metadata("bert", tokens, **{f"{name}_token_id": id for name, id in ids.items()}, **keys)


def rwkv(**keys: Any) -> dict[str, Any]:
    """An `rwkv` vocabulary: bytes and words, with the escapes of its files."""
    tokens = {"<s>": (CONTROL, 0.0)}
    tokens |= {f"\\x{byte:02x}": (NORMAL, 0.0) for byte in range(256)}
    for word in (*_WORDS, "\\n\\n", "\\t", "\\r\\n", "a\\\\b", "\\'s", " the", "  ", "    "):
        tokens[word] = (NORMAL, 0.0)
    return metadata("rwkv", tokens, **keys)


def plamo2(**keys: Any) -> dict[str, Any]:
    """A `plamo2` vocabulary, in which many segmentations cost the same."""
    names = ("<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>")
    tokens = dict.fromkeys(names, (CONTROL, 0.0))
    tokens |= {f"<0x{byte:02X}>": (BYTE, 0.0) for byte in range(256)}
    for text in (*_WORDS, *_LETTERS, " ", "  ", " the", "\n", "\n\n", "a a"):
        # Numbers that files hold exactly.
        tokens[text] = (NORMAL, -1.25 * (1 + len(text) // 2))
    tokens["over"] = (NORMAL, -2500.0)  # too dear to be chosen
    return metadata("plamo2", tokens, **keys)


def whitespace(merges: list[str], **keys: Any) -> dict[str, Any]:
    """A `whitespace` vocabulary: plain characters, merged."""
    letters = dict.fromkeys((*_LETTERS, *"ABCDE"), (NORMAL, 0.0))
    pairs = ["t h", "th e", "a a", "aa aa", "天 天", "i t", "T h"]
    tokens = letters | {pair.replace(" ", ""): (NORMAL, 0.0) for pair in pairs}
    tokens |= dict.fromkeys(BYTE_LETTERS, (NORMAL, 0.0))
    tokens |= {"<mark>": (USER_DEFINED, 0.0)}
    return metadata("whitespace", tokens, merges=pairs, **keys)


def hybriddna(merges: list[str], **keys: Any) -> dict[str, Any]:
    """A `hybriddna` vocabulary with some of the sixes."""
    data = joining(merges, **keys)
    sixes = [f"{six}\ue000" for six in ("ACGTAC", "AAAAAA", "GGGCCC", "TTTTTT", "ACAAAA")]
    for text in ("<dna>", "</dna>", "<oov>", *sixes):
        data["tokenizer.ggml.tokens"].append(text)
        data["tokenizer.ggml.token_type"].append(NORMAL)
        data["tokenizer.ggml.scores"].append(0.0)
    return {**data, "tokenizer.ggml.model": "hybriddna"}


def vocabularies(merges: list[str]) -> dict[str, dict[str, Any]]:
    """One of each kind that is not byte pair encoding alone, and what its keys change."""
    return {
        "bert": wordpiece(),
        "bert cased": wordpiece(**{"normalizer.lowercase": False}),
        "bert with accents": wordpiece(**{"normalizer.strip_accents": False}),
        "rwkv": rwkv(),
        "plamo2": plamo2(),
        "whitespace": whitespace(merges, pre="whitespace"),
        "whitespace small": whitespace(merges, pre="gpt-2"),
        "hybriddna": hybriddna(merges, pre="gpt-2"),
    }
