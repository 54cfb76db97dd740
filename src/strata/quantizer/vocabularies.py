"""The vocabulary of a Hugging Face directory as GGUF's keys, proven by texts: what a reader of the
GGUF file makes of them are the ids that tokenizer.json gives.

Key names are those of the GGUF specification. Which pre-tokenizer GGUF has for the patterns of
tokenizer.json is found by cutting a text with all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.errors import UsageError
from strata.formats import ModelFile
from strata.text import load_tokenizer
from strata.text.errors import TokenizerError
from strata.text.gguf import tokenizer_from_gguf
from strata.text.huggingface import directory_engine, directory_templates
from strata.text.pretokenizers import known_pre_tokenizers, pre_tokenizer
from strata.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_TEXTS = (
    "Hello, world! It's 3:45 pm - we've paid $1,234.50 for 12 apples (or 1000000?).",
    "  two spaces,\ttabs\t\tand lines\n\n\n   indented\r\nI'LL they'd DON'T x=y**2; a_b == c->d\n",
    "Größe naïve café 東京は日本の首都です。한국어 привет мир שלום नमस्ते ไทย 🚀🏽 e\u0301 \ufb01 ½",
    "\u2028\u00a0\u3000<|not a token|> ...!!!??? `code` \u201cquotes\u201d \u2026",
    "123456789012 a1b2c3 ABCdefGHI // \U0001d518\U0001d52b\U0001d526",
    *(" leading", "trailing ", " ", "\n", "1", "aaaaaaaaaaaaaaaa"),
)


class UnknownVocabulary(UsageError):
    """A tokenizer for which GGUF has no name, as far as is known here."""


def vocabulary_keys(file: ModelFile, size: int) -> dict[str, Any]:
    """`tokenizer.ggml.*` of a directory, with ``size`` tokens, and its chat templates.

    Raises UnknownVocabulary, or what reading the directory's tokenizer raises.
    """
    path = file.path / "tokenizer.json"
    engine, _, _ = directory_engine(file.path, file.room)
    model = json.loads(path.read_text(encoding="utf-8")).get("model") or {}
    if model.get("type", "BPE") != "BPE":
        raise UnknownVocabulary(
            f"{path}: a vocabulary of the kind {model.get('type')} is not written as GGUF here: "
            "give a file that was converted"
        )
    theirs = load_tokenizer(file)
    keys = {**_tokens(engine, model, size), **_specials(theirs, engine, file.path)}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ())]
    found = _checked(theirs, _candidates(engine, model, keys, merges), str(path))
    return {**found, **_templates(file.path)}


def _tokens(engine: tokenizers.Tokenizer, model: Mapping[str, Any], size: int) -> dict[str, Any]:
    added = engine.get_added_tokens_decoder()
    texts = {id: text for text, id in engine.get_vocab(with_added_tokens=True).items()}
    unknown = model.get("unk_token")
    tokens, types = [], []
    for id in range(max(size, 1 + max(texts, default=0))):
        text = texts.get(id)
        if text is None:
            tokens.append(f"[PAD{id}]")
            types.append(_UNUSED)
            continue
        tokens.append(text)
        if id in added:
            types.append(_CONTROL if added[id].special else _USER_DEFINED)
        elif text == unknown:
            types.append(_UNKNOWN)
        elif model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types.append(_BYTE)
        else:
            types.append(_NORMAL)
        if text == unknown and model.get("byte_fallback"):
            types[-1] = _UNKNOWN
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }


def _specials(theirs: Tokenizer, engine: tokenizers.Tokenizer, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        text = theirs.special_tokens.get(f"{name}_token")
        id = None if text is None else engine.token_to_id(text)
        if id is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = np.uint32(id)
    found["tokenizer.ggml.add_bos_token"] = theirs.add_bos
    found["tokenizer.ggml.add_eos_token"] = theirs.add_eos
    return found


def _candidates(
    engine: tokenizers.Tokenizer, model: Mapping[str, Any], keys: dict[str, Any], merges: list[str]
) -> Iterator[dict[str, Any]]:
    """Keys that may be right, the likelier first."""
    if model.get("byte_fallback"):
        tokens = keys["tokenizer.ggml.tokens"]
        ids = {text: id for id, text in enumerate(tokens)}
        scores = np.full(len(tokens), -1e9, np.float32)
        for rank in range(len(merges) - 1, -1, -1):
            id = ids.get(merges[rank].replace(" ", ""))
            if id is not None:
                scores[id] = -rank
        for prefix in (True, False):
            yield {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.pre": "default",
                **keys,
                "tokenizer.ggml.scores": scores,
                "tokenizer.ggml.add_space_prefix": prefix,
            }
        return
    for name in _families(engine, bool(model.get("ignore_merges"))):
        yield {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            **keys,
            "tokenizer.ggml.merges": merges,
        }


def _families(engine: tokenizers.Tokenizer, ignore_merges: bool) -> Iterator[str]:
    """Pre-tokenizers that cut as the engine's does; those that agree on merges come first."""
    from tokenizers import Regex, pre_tokenizers

    if engine.pre_tokenizer is None:
        return
    expected = [
        [piece for piece, _ in engine.pre_tokenizer.pre_tokenize_str(text)] for text in _TEXTS
    ]
    found: list[tuple[bool, str]] = []
    for name in known_pre_tokenizers():
        family = pre_tokenizer(name)
        if not family.byte_level or family.merges_optional:
            continue
        cuts: list[Any] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in family.patterns
        ]
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        cutter = pre_tokenizers.Sequence(cuts)
        if all(
            [piece for piece, _ in cutter.pre_tokenize_str(text)] == pieces
            for text, pieces in zip(_TEXTS, expected, strict=True)
        ):
            found.append((family.ignore_merges != ignore_merges, name))
    yield from (name for _, name in sorted(found, key=lambda f: (f[0], _LIKELY.get(f[1], 99))))


# Of families that cut alike, what most models are called after.
_LIKELY = {"gpt-2": 0, "qwen2": 0, "llama-bpe": 0, "smollm": 0, "tekken": 0, "deepseek-v3": 0}


def _checked(theirs: Tokenizer, candidates: Iterator[dict[str, Any]], path: str) -> dict[str, Any]:
    """The first with which a reader gets the same ids and ends."""
    expected = [theirs.encode(text, add_special=True) for text in _TEXTS]
    for keys in candidates:
        try:
            ours = tokenizer_from_gguf(plain(keys))
            missing = sorted(theirs.stop_ids - ours.stop_ids)
            if missing:
                keys = {**keys, "tokenizer.ggml.eot_token_id": np.uint32(missing[0])}
                ours = tokenizer_from_gguf(plain(keys))
            if [ours.encode(text, add_special=True) for text in _TEXTS] == expected:
                return keys
        except TokenizerError:
            continue
    raise UnknownVocabulary(
        f"{path}: its texts are cut in a way for which GGUF has no name here, so that no file of "
        "it would give the same tokens: give one that was converted"
    )


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF writer takes as a reader gives it."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}


def _templates(path: Path) -> dict[str, str]:
    return {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): text
        for name, text in directory_templates(path).items()
    }
