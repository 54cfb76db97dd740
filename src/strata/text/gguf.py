"""A Tokenizer from the metadata of a GGUF file, with or without tensors in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from strata.formats.errors import shown
from strata.text.bpe import BpeEncoder, letters_to_bytes
from strata.text.bpe_parts import DNA_MARK, WithDna, WithoutSpace
from strata.text.errors import TokenizerError
from strata.text.gguf_keys import TokenizerKeys
from strata.text.plamo2 import Plamo2Encoder
from strata.text.pretokenizers import pre_tokenizer
from strata.text.rwkv import RwkvEncoder, unescaped
from strata.text.sentencepiece import SPACE, SentencePieceEncoder
from strata.text.special import SpecialTokens
from strata.text.tokenizer import Encoder, Tokenizer
from strata.text.unigram import CharacterMap, UnigramEncoder
from strata.text.vocabulary import (
    Kind,
    Vocabulary,
    read_vocabulary,
    special_tokens,
    token_text,
)
from strata.text.wordpiece import WordPieceEncoder

_BYTE, _NORMAL = int(Kind.BYTE), int(Kind.NORMAL)
_SPECIAL = int(Kind.CONTROL | Kind.UNKNOWN)
_PLAIN = int(Kind.CONTROL | Kind.UNKNOWN | Kind.USER_DEFINED)


class GgufPieces:
    """Bytes of the tokens of a GGUF vocabulary."""

    def __init__(self, vocabulary: Vocabulary, plain: Callable[[str], bytes]) -> None:
        """``plain`` gives the bytes of a token that is neither special nor a byte."""
        # Not the vocabulary itself, whose ids by text are only for encoders that go by them.
        self._tokens = vocabulary.tokens
        self._kinds = vocabulary.kinds
        self._plain = plain

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
        return self._plain(text)


def _spaced(text: str) -> bytes:
    return text.replace(SPACE, " ").encode()


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
    return _bpe(keys, read_vocabulary(keys, _FALCON), keys.text("pre"))


def _from_gemma4(keys: TokenizerKeys) -> Tokenizer:
    return _bpe(keys, read_vocabulary(keys, {}), "gemma4")


def _from_whitespace(keys: TokenizerKeys) -> Tokenizer:
    pre = keys.text("pre")
    lowercase = keys.flag("normalizer.lowercase", pre != "whitespace")
    return _bpe(
        keys,
        read_vocabulary(keys, _FALCON),
        pre,
        lambda words, special: WithoutSpace(words, special, lowercase),
    )


def _from_hybriddna(keys: TokenizerKeys) -> Tokenizer:
    vocabulary = read_vocabulary(keys, _FALCON)
    ids = vocabulary.ids
    if not {"<dna>", "</dna>", "<oov>"} <= ids.keys():
        return _bpe(keys, vocabulary, keys.text("pre"))
    shown = replace(vocabulary, tokens=[text.removesuffix(DNA_MARK) for text in vocabulary.tokens])
    return _bpe(keys, shown, keys.text("pre"), lambda words, special: WithDna(words, special, ids))


_FALCON = {"bos": 11, "eos": 11}


def _bpe(
    keys: TokenizerKeys,
    vocabulary: Vocabulary,
    pre: str,
    around: Callable[[BpeEncoder, SpecialTokens], Encoder] | None = None,
) -> Tokenizer:
    """``around`` makes of the encoder of words, without special tokens, that of texts."""
    family = pre_tokenizer(pre)
    special = special_tokens(vocabulary, keys)
    has_merges = keys.has("merges") or not family.merges_optional
    encoder = BpeEncoder(
        vocabulary.ids,
        keys.strings("merges") if has_merges else (),
        family,
        SpecialTokens(()) if around else special,
        escape_spaces=family.escapes_spaces,
    )
    return _assemble(
        keys,
        vocabulary,
        around(encoder, special) if around else encoder,
        plain=_spaced if family.escapes_spaces else letters_to_bytes,
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
        plain=_spaced,
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
        plain=_spaced,
        add_bos=keys.flag("add_bos_token", False),
        add_eos=True,
        strips_leading_space=add_space_prefix,
    )


def _from_bert(keys: TokenizerKeys) -> Tokenizer:
    defaults = {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}
    vocabulary = read_vocabulary(keys, defaults)
    lowercase = keys.flag("normalizer.lowercase", True)
    encoder = WordPieceEncoder(
        vocabulary.ids,
        special_tokens(vocabulary, keys),
        vocabulary.special.get("unk"),
        lowercase,
        keys.flag("normalizer.strip_accents", lowercase),
    )
    # Whatever the file says, as llama.cpp does: an encoder wants both.
    return _assemble(
        keys,
        vocabulary,
        encoder,
        plain=_spaced,
        add_bos=True,
        add_eos=False,
        strips_leading_space=True,
        around=("bos", "sep"),
    )


def _from_rwkv(keys: TokenizerKeys) -> Tokenizer:
    vocabulary = read_vocabulary(keys, {})
    encoder = RwkvEncoder(
        {unescaped(text): id for text, id in vocabulary.ids.items()},
        special_tokens(vocabulary, keys),
        vocabulary.special.get("unk"),
    )
    return _without_frame(keys, vocabulary, encoder, unescaped)


def _from_plamo2(keys: TokenizerKeys) -> Tokenizer:
    vocabulary = read_vocabulary(keys, {"bos": 1, "eos": 2, "unk": 0, "pad": 3})
    ids = vocabulary.ids
    names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    is_byte = {id for id, kind in enumerate(vocabulary.kinds) if kind & _BYTE}
    encoder = Plamo2Encoder(
        {text: id for text, id in ids.items() if id not in is_byte},
        vocabulary.scores,
        {byte: ids[name] for byte, name in names.items() if ids.get(name) in is_byte},
        special_tokens(vocabulary, keys),
    )
    return _without_frame(keys, vocabulary, encoder, str.encode)


def _without_frame(
    keys: TokenizerKeys, vocabulary: Vocabulary, encoder: Encoder, plain: Callable[[str], bytes]
) -> Tokenizer:
    """Prompts are encoded as they are, whatever the file says of tokens around them."""
    return _assemble(
        keys,
        vocabulary,
        encoder,
        plain=plain,
        add_bos=False,
        add_eos=False,
        strips_leading_space=False,
        around=("", ""),
    )


_MODELS = {
    "llama": _from_llama,
    "gpt2": _from_gpt2,
    "gemma4": _from_gemma4,
    "t5": _from_t5,
    "bert": _from_bert,
    "rwkv": _from_rwkv,
    "plamo2": _from_plamo2,
    "whitespace": _from_whitespace,
    "hybriddna": _from_hybriddna,
}


def _assemble(
    keys: TokenizerKeys,
    vocabulary: Vocabulary,
    encoder: Encoder,
    *,
    plain: Callable[[str], bytes],
    add_bos: bool,
    add_eos: bool,
    strips_leading_space: bool,
    around: tuple[str, str] | None = None,
) -> Tokenizer:
    """``around``: which special tokens a prompt has before and behind it; else the keys say."""
    bos, eos = vocabulary.special.get("bos"), vocabulary.special.get("eos")
    if around is None:
        add_eos = keys.flag("add_eos_token", add_eos)
        around = ("bos" if add_bos else "", "eos" if add_eos else "")
    before, behind = (
        [vocabulary.special[name]] if name in vocabulary.special else [] for name in around
    )
    return Tokenizer(
        encoder=encoder,
        pieces=GgufPieces(vocabulary, plain),
        bos_id=bos,
        eos_id=eos,
        stop_ids=frozenset(vocabulary.stops),
        prefix_ids=before,
        suffix_ids=behind,
        strips_leading_space=strips_leading_space,
        special_tokens={
            f"{name}_token": vocabulary.text(id)
            for name, id in vocabulary.special.items()
            if not name.startswith("fim_")
        },
        chat_templates=keys.chat_templates(),
    )
