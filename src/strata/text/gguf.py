"""A Tokenizer from the metadata of a GGUF file, with or without tensors in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.formats.errors import shown
from strata.text.bpe import BpeEncoder, letters_to_bytes
from strata.text.errors import TokenizerError
from strata.text.gguf_keys import TokenizerKeys
from strata.text.pretokenizers import pre_tokenizer
from strata.text.sentencepiece import SPACE, SentencePieceEncoder
from strata.text.tokenizer import Encoder, Tokenizer
from strata.text.unigram import CharacterMap, UnigramEncoder
from strata.text.vocabulary import (
    Kind,
    Vocabulary,
    read_vocabulary,
    special_tokens,
    token_text,
)

_BYTE, _NORMAL = int(Kind.BYTE), int(Kind.NORMAL)
_SPECIAL = int(Kind.CONTROL | Kind.UNKNOWN)
_PLAIN = int(Kind.CONTROL | Kind.UNKNOWN | Kind.USER_DEFINED)


class GgufPieces:
    """Bytes of the tokens of a GGUF vocabulary."""

    def __init__(self, vocabulary: Vocabulary, byte_level: bool) -> None:
        # Not the vocabulary itself, whose ids by text are only for encoders that go by them.
        self._tokens = vocabulary.tokens
        self._kinds = vocabulary.kinds
        self._byte_level = byte_level

    def __len__(self) -> int:
        return len(self._tokens)

    def is_special(self, id: int) -> bool:
        return bool(self._kinds[id] & _SPECIAL)

    def piece(self, id: int) -> bytes:
        text, kind = token_text(self._tokens, id), self._kinds[id]
        if kind & _PLAIN:
            return text.encode()
        if kind & _BYTE:
            return _named_byte(text)
        if not kind & _NORMAL:
            return b""
        return letters_to_bytes(text) if self._byte_level else text.replace(SPACE, " ").encode()


def _named_byte(text: str) -> bytes:
    """`<0x0A>` -> the byte."""
    try:
        return bytes([int(text[3:5], 16)]) if text.startswith("<0x") else text.encode()
    except ValueError:
        return text.encode()


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that `tokenizer.ggml.*` describes (the GGUF specification's keys).

    Raises TokenizerError for a model or pre-tokenizer that is not known, or malformed arrays.
    """
    keys = TokenizerKeys(metadata)
    model = keys.text("model")
    if model not in _MODELS:
        what = f"tokenizer model {shown(model)}" if model else "no tokenizer.ggml.model"
        raise TokenizerError(f"the file has {what}; known are: {', '.join(_MODELS)}")
    return _MODELS[model](keys)


def _from_gpt2(keys: TokenizerKeys) -> Tokenizer:
    vocabulary = read_vocabulary(keys, {"bos": 11, "eos": 11})  # Falcon's
    return _bpe(keys, vocabulary, keys.text("pre"))


def _from_gemma4(keys: TokenizerKeys) -> Tokenizer:
    return _bpe(keys, read_vocabulary(keys, {}), "gemma4")


def _bpe(keys: TokenizerKeys, vocabulary: Vocabulary, pre: str) -> Tokenizer:
    family = pre_tokenizer(pre)
    encoder = BpeEncoder(
        vocabulary.ids,
        keys.strings("merges"),
        family,
        special_tokens(vocabulary, keys),
        escape_spaces=not family.byte_level,
    )
    return _assemble(
        keys,
        vocabulary,
        encoder,
        byte_level=family.byte_level,
        add_bos=family.add_bos or keys.flag("add_bos_token", False)
        if family.newline_runs
        else keys.flag("add_bos_token", family.add_bos),
        add_eos=False,
        strips_leading_space=keys.flag("add_space_prefix", False),
    )


def _from_llama(keys: TokenizerKeys) -> Tokenizer:
    vocabulary = read_vocabulary(keys, {"bos": 1, "eos": 2, "unk": 0})
    add_space_prefix = keys.flag("add_space_prefix", True)
    encoder = SentencePieceEncoder(
        vocabulary.ids,
        vocabulary.scores,
        special_tokens(vocabulary, keys),
        add_space_prefix,
        vocabulary.special.get("unk"),
    )
    return _assemble(
        keys,
        vocabulary,
        encoder,
        byte_level=False,
        add_bos=keys.flag("add_bos_token", True),
        add_eos=False,
        strips_leading_space=add_space_prefix,
    )


def _from_t5(keys: TokenizerKeys) -> Tokenizer:
    vocabulary = read_vocabulary(keys, {"eos": 1, "unk": 2, "pad": 0})
    unknown = vocabulary.special.get("unk")
    if unknown is None:
        raise TokenizerError("a unigram vocabulary needs tokenizer.ggml.unknown_token_id")
    choosable = int(Kind.NORMAL | Kind.USER_DEFINED | Kind.UNUSED)
    table = keys.table("precompiled_charsmap")
    add_space_prefix = keys.flag("add_space_prefix", False)
    encoder = UnigramEncoder(
        {t: id for t, id in vocabulary.ids.items() if vocabulary.has(id, choosable)},
        vocabulary.scores,
        {id for id, kind in enumerate(vocabulary.kinds) if kind & Kind.USER_DEFINED},
        special_tokens(vocabulary, keys),
        None if table is None else CharacterMap(table),
        add_space_prefix,
        keys.flag("remove_extra_whitespaces", False),
        unknown,
    )
    return _assemble(
        keys,
        vocabulary,
        encoder,
        byte_level=False,
        add_bos=keys.flag("add_bos_token", False),
        add_eos=True,
        strips_leading_space=add_space_prefix,
    )


_MODELS = {
    "llama": _from_llama,
    "gpt2": _from_gpt2,
    "gemma4": _from_gemma4,
    "t5": _from_t5,
}


def _assemble(
    keys: TokenizerKeys,
    vocabulary: Vocabulary,
    encoder: Encoder,
    *,
    byte_level: bool,
    add_bos: bool,
    add_eos: bool,
    strips_leading_space: bool,
) -> Tokenizer:
    bos, eos = vocabulary.special.get("bos"), vocabulary.special.get("eos")
    add_eos = keys.flag("add_eos_token", add_eos)
    return Tokenizer(
        encoder=encoder,
        pieces=GgufPieces(vocabulary, byte_level),
        bos_id=bos,
        eos_id=eos,
        stop_ids=frozenset(vocabulary.stops),
        prefix_ids=[bos] if add_bos and bos is not None else [],
        suffix_ids=[eos] if add_eos and eos is not None else [],
        strips_leading_space=strips_leading_space,
        special_tokens={
            f"{name}_token": vocabulary.text(id)
            for name, id in vocabulary.special.items()
            if not name.startswith("fim_")
        },
        chat_templates=keys.chat_templates(),
    )
