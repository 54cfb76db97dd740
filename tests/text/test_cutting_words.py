"""Pipelines whose models see one word at a time: long texts are encoded in parts, too."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from strata.text import cutting
from strata.text.gguf import tokenizer_from_gguf
from strata.text.huggingface import HuggingFaceEncoder
from support.character_maps import character_map
from support.small_vocabularies import metadata
from text.test_cutting_texts import ALPHABET, ids_in_parts, texts

MAP = {"\n": " ", "ﬁ": "fi", "é": "é", "，": ",", "\u00a0": " ", "①": "1", "ｱ": "ア"}


def precompiled(replacements: Mapping[str, str]) -> Any:
    """The library makes none by itself: it is read from JSON."""
    table = base64.b64encode(character_map(replacements)).decode()
    state = json.loads(Engine(models.BPE()).to_str())
    state["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    return Engine.from_str(json.dumps(state)).normalizer


def word_piece() -> Any:
    source = random.Random(2)
    letters = [c for c in dict.fromkeys(ALPHABET.lower()) if not c.isspace()]
    words = [*letters, *("##" + c for c in letters)]
    words += [a + b for a in letters[:30] for b in letters[:30] if source.random() < 0.3]
    words += ["##" + a + b for a in letters for b in letters if source.random() < 0.1]
    return models.WordPiece(_numbered(["[UNK]", *words]), unk_token="[UNK]")


def word_level() -> Any:
    return models.WordLevel(_numbered(["[UNK]", "the", "a", "中", "b", "，"]), unk_token="[UNK]")


def unigram() -> Any:
    source = random.Random(3)
    letters = [c for c in dict.fromkeys(ALPHABET) if c not in " \u0301é"]
    words = ["▁", *letters[:60]]
    words += [a + b for a in words for b in words if source.random() < 0.2]
    return models.Unigram(
        [("<unk>", 0.0), *((w, -9 * source.random()) for w in dict.fromkeys(words))], 0, False
    )


def byte_pairs() -> Any:
    letters = list(dict.fromkeys(ALPHABET))
    pairs = [(a, b) for a in letters[:25] for b in letters[:25]]
    words = ["<unk>", *letters, *(a + b for a, b in pairs)]
    return models.BPE(vocab=_numbered(words), merges=pairs, unk_token="<unk>", fuse_unk=True)


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: n for n, word in enumerate(dict.fromkeys(words))}


def bert(engine: Engine) -> None:
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def words_and_marks(engine: Engine) -> None:
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)]
    )


def spaces(engine: Engine) -> None:
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def albert_like(engine: Engine) -> None:
    engine.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            precompiled(MAP),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")


def t5_like(engine: Engine) -> None:
    engine.normalizer = normalizers.Sequence(
        [
            precompiled(MAP),
            normalizers.Strip(left=False),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first")


def xlm_roberta_like(engine: Engine) -> None:
    engine.normalizer = precompiled(MAP)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "first")]
    )


PIPELINES: list[Callable[[Engine], None]] = [
    bert,
    words_and_marks,
    spaces,
    albert_like,
    t5_like,
    xlm_roberta_like,
]
MODELS = [word_piece, word_level, unigram, byte_pairs]


@pytest.mark.parametrize("prepare", PIPELINES)
@pytest.mark.parametrize("model", MODELS)
def test_parts_have_the_ids_of_the_whole(
    model: Callable[[], Any], prepare: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model())
    prepare(engine)
    engine.add_special_tokens(["[CLS]", "[MASK]", "<|im_end|>"])
    encoder = HuggingFaceEncoder(engine)
    assert encoder._cuts is not None
    cuts = 0
    for text in texts("words", 300):
        whole = engine.encode(text, add_special_tokens=False).ids
        assert ids_in_parts(encoder, text, monkeypatch) == whole, text
        with monkeypatch.context() as patch:
            patch.setattr(cutting, "PART", 1)
            cuts += len(list(encoder._cuts.parts(text))) - 1
    assert cuts > 100


def joined_by_nothing(engine: Engine) -> None:
    engine.normalizer = precompiled({" ": "x"})
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def letters_that_are_spaces(engine: Engine) -> None:
    engine.normalizer = normalizers.Sequence(
        [precompiled({"a": " "}), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    engine.pre_tokenizer = pre_tokenizers.Metaspace()


def anything_replaced(engine: Engine) -> None:
    engine.normalizer = normalizers.Replace(Regex("[a-z] [a-z]"), "b")
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def whole_texts(engine: Engine) -> None:
    engine.pre_tokenizer = pre_tokenizers.Metaspace(split=False)


def a_token_of_two_words(engine: Engine) -> None:
    bert(engine)
    engine.add_tokens(["new york"])


def a_token_that_ends_in_a_space(engine: Engine) -> None:
    bert(engine)
    engine.add_tokens(["new "])


@pytest.mark.parametrize(
    "prepare",
    [
        joined_by_nothing,
        letters_that_are_spaces,
        anything_replaced,
        whole_texts,
        a_token_of_two_words,
        a_token_that_ends_in_a_space,
    ],
)
def test_what_is_not_sure_is_not_cut(prepare: Callable[[Engine], None]) -> None:
    engine = Engine(unigram())
    prepare(engine)
    assert HuggingFaceEncoder(engine)._cuts is None


def test_what_a_text_becomes_is_counted() -> None:
    engine = Engine(word_piece())
    bert(engine)
    engine.normalizer = precompiled({"a": "b" * 60})
    encoder = HuggingFaceEncoder(engine)
    assert encoder.working_bytes("a" * 1000) >= 60 * encoder.working_bytes("c" * 1000) > 0
    assert encoder.working_bytes("a " * 100_000) < encoder.working_bytes("a" * 20_000)


def test_a_unigram_text_is_counted_by_its_stretches() -> None:
    table = np.frombuffer(character_map({"a": "b" * 60}), np.uint8)
    tokens = {"<unk>": (2, 0.0), "\u2581": (1, -1.0), "b": (1, -1.0)}
    tokenizer = tokenizer_from_gguf(
        metadata("t5", tokens, unknown_token_id=0, precompiled_charsmap=table)
    )
    few, many = (tokenizer.working_bytes(letter * 10_000) for letter in "ca")
    assert many > 50 * few
    assert tokenizer.working_bytes("c " * 5_000) < few
    assert tokenizer.working_bytes("\ud800") == tokenizer.working_bytes("\ufffd")
