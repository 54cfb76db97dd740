"""The own encoders against naive ones, and what the keys of a file change."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from strata.text import TokenizerError, tokenizer_from_gguf
from strata.text.bpe import BYTE_LETTERS
from strata.text.pretokenizers import known_pre_tokenizers
from support.small_vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    metadata,
    sentencepiece,
)

_WORDS = {"▁": -9.0, "a": -8.0, "b": -7.5, "é": -7.0, "▁a": -3.0, "▁▁": -2.0, "▁▁▁▁": -2.5}
_SPACED = {**_WORDS, "a▁": -1.0, "\n▁": -1.5, "\n": -6.0}


def _naive_merges(text: str, scores: Mapping[str, float]) -> list[str]:
    """The definition: again and again the best pair of neighbours, the leftmost of equals."""
    parts = list(text)
    while True:
        pairs = [
            (scores[parts[i] + parts[i + 1]], -i)
            for i in range(len(parts) - 1)
            if parts[i] + parts[i + 1] in scores
        ]
        if not pairs:
            return parts
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("base", [_WORDS, _SPACED], ids=["words", "spaced"])
def test_sentencepiece_equals_the_naive_definition(base: dict[str, float], seed: int) -> None:
    source = random.Random(seed)
    # Few scores, so that ties are common.
    words = dict(base)
    for _ in range(60):
        word = "".join(source.choices("ab▁é", k=source.randint(2, 5)))
        if base is _SPACED or "▁" not in word[1:]:
            words[word] = float(source.randint(-4, -1))
    tokenizer = tokenizer_from_gguf(sentencepiece(words))
    tokens = sentencepiece(words)["tokenizer.ggml.tokens"]
    for _ in range(40):
        text = "".join(source.choices("aabbé \n€", k=source.randint(0, 40)))
        spaced = (" " + text if text else "").replace(" ", "▁")
        scores = {**words, "<unk>": 0.0}
        expected = [
            id
            for part in _naive_merges(spaced, scores)
            for id in (
                [tokens.index(part)]
                if part in words
                else [tokens.index(f"<0x{byte:02X}>") for byte in part.encode()]
            )
        ]
        assert tokenizer.encode(text) == expected, (text, words)
        assert tokenizer.decode(expected) == text


def test_sentencepiece_around_special_tokens() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece(_WORDS))
    tokens = sentencepiece(_WORDS)["tokenizer.ggml.tokens"]

    def shown(ids: list[int]) -> list[str]:
        return [tokens[id] for id in ids]

    # A space goes before the first text and before each text that follows a special token.
    assert shown(tokenizer.encode("a<user>a")) == ["▁a", "<user>", "▁a"]
    assert shown(tokenizer.encode("a<|im_end|>b", parse_special=True)) == [
        "▁a",
        "<|im_end|>",
        "▁",
        "b",
    ]
    assert "<|im_end|>" not in shown(tokenizer.encode("a<|im_end|>b"))
    assert shown(tokenizer.encode("a", add_special=True)) == ["<s>", "▁a"]
    assert shown(tokenizer.encode("", add_special=True)) == ["<s>"]
    assert tokenizer.stop_ids == {2, 259}
    assert tokenizer.decode([1, *tokenizer.encode("a"), 2]) == "a"
    assert tokenizer.decode([*tokenizer.encode("a"), 2], skip_special=False) == "a</s>"
    assert tokenizer.decode(tokenizer.encode("a"), continuing=True) == " a"
    plain = tokenizer_from_gguf(
        sentencepiece(_WORDS, add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    )
    assert shown(plain.encode("a", add_special=True)) == ["a", "</s>"]
    assert (plain.add_bos, plain.add_eos) == (False, True)


def _byte_level(merges: list[str], without: tuple[str, ...] = (), **keys: Any) -> dict[str, Any]:
    words = [merge.replace(" ", "") for merge in merges]
    tokens = {"<|endoftext|>": (CONTROL, 0.0), "  ": (USER_DEFINED, 0.0)}
    tokens |= {text: (NORMAL, 0.0) for text in [*BYTE_LETTERS, *words] if text not in without}
    return metadata("gpt2", tokens, merges=merges, pre="gpt-2", **keys)


@pytest.mark.parametrize("seed", range(20))
def test_byte_level_merges_equal_the_naive_definition(seed: int) -> None:
    source = random.Random(seed)
    parts, merges = list("abc"), []
    for _ in range(25):
        pair = source.choice(parts), source.choice(parts)
        if f"{pair[0]} {pair[1]}" not in merges and len("".join(pair)) < 7:
            merges.append(" ".join(pair))
            parts.append("".join(pair))
    tokenizer = tokenizer_from_gguf(_byte_level(merges))
    tokens = _byte_level(merges)["tokenizer.ggml.tokens"]
    ranks = {tuple(merge.split()): -float(rank) for rank, merge in enumerate(merges)}
    for _ in range(30):
        text = "".join(source.choices("abc", k=source.randint(1, 30)))
        symbols = list(text)
        while pairs := [
            (ranks[pair], -at)
            for at, pair in enumerate(itertools.pairwise(symbols))
            if pair in ranks
        ]:
            at = -max(pairs)[1]
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        assert tokenizer.encode(text) == [tokens.index(symbol) for symbol in symbols], (
            text,
            merges,
        )


def test_letters_and_merges_without_a_token() -> None:
    # "ab" is merged but no token: what is left of it is its letters. "c" is no token: it vanishes.
    data = _byte_level(["a b", "ab d", "b c"], without=("ab", "c"))
    tokens = data["tokenizer.ggml.tokens"]
    assert "ab" not in tokens
    assert "c" not in tokens
    tokenizer = tokenizer_from_gguf(data)
    assert tokenizer.encode("ab") == [tokens.index("a"), tokens.index("b")]
    assert tokenizer.encode("abd") == [tokens.index("abd")]
    assert tokenizer.encode("aca") == [tokens.index("a")] * 2


def test_user_defined_tokens_are_always_recognised() -> None:
    tokenizer = tokenizer_from_gguf(_byte_level([]))
    assert tokenizer.encode("    ") == [1, 1]
    assert len(tokenizer.encode("<|endoftext|>")) == len("<|endoftext|>")
    assert tokenizer.encode("<|endoftext|>", parse_special=True) == [0]
    assert tokenizer.stop_ids == {0}
    assert tokenizer.bos_id is None  # no key, and id 11 is an ordinary letter
    assert tokenizer.encode("", add_special=True) == []


def test_special_tokens_that_eat_spaces() -> None:
    data = {**sentencepiece(_WORDS), "general.name": "Phi-3 mini"}
    tokenizer = tokenizer_from_gguf(data)
    ids = tokenizer.encode("a<|im_end|> \n a", parse_special=True)
    assert ids == tokenizer.encode("a<|im_end|>a", parse_special=True)


def _naive_unigram(text: str, scores: Mapping[str, float], unknown: float) -> float:
    best = [0.0] + [float("-inf")] * len(text)
    for start, stop in itertools.combinations(range(len(text) + 1), 2):
        piece = text[start:stop]
        score = scores.get(piece, unknown if stop == start + 1 else None)
        if score is not None:
            best[stop] = max(best[stop], best[start] + score)
    return best[-1]


@pytest.mark.parametrize("seed", range(20))
def test_unigram_finds_the_best_sum(seed: int) -> None:
    source = random.Random(seed)
    words = {"▁": -5.0, "a": -4.0, "é": -4.5}
    for _ in range(25):
        words["".join(source.choices("abé▁", k=source.randint(2, 4)))] = -source.uniform(1, 9)
    tokens = {"<pad>": (CONTROL, 0.0), "</s>": (CONTROL, 0.0), "<unk>": (UNKNOWN, 0.0)}
    tokens |= {word: (NORMAL, score) for word, score in words.items()}
    data = metadata("t5", tokens, add_space_prefix=True)
    tokenizer = tokenizer_from_gguf(data)
    names = data["tokenizer.ggml.tokens"]
    unknown = min(words.values()) - 10.0
    for _ in range(30):
        text = "".join(source.choices("abé ", k=source.randint(1, 12)))
        ids = tokenizer.encode(text)
        # An unknown token stands for a run of characters: count the characters it stands for.
        known = "".join(names[id] for id in ids if id != 2)
        # The space that is added stands before the first word, after the text's own leading spaces.
        leading = len(text) - len(text.lstrip())
        words_only = text.lstrip().replace(" ", "▁")
        spaced = "▁" * leading + ("▁" + words_only if words_only else "")
        total = sum(words[names[id]] for id in ids if id != 2)
        total += unknown * (len(spaced) - len(known))
        assert total == pytest.approx(_naive_unigram(spaced, words, unknown), abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "runes"}, r"tokenizer model 'runes'; known are: llama, gpt2"),
        ({"tokenizer.ggml.model": None}, "no tokenizer.ggml.model"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens is empty"),
        ({"tokenizer.ggml.tokens": 7}, "must be an array of strings, not int"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "must be an array of strings"),
        ({"tokenizer.ggml.scores": [0.0]}, r"scores has 1 entries for \d+ tokens"),
        ({"tokenizer.ggml.scores": "x"}, "must be an array of numbers, not str"),
        ({"tokenizer.ggml.token_type": ["a"] * 999}, "must be an array of numbers"),
        ({"tokenizer.ggml.bos_token_id": "<s>"}, "bos_token_id must be a token id"),
        ({"tokenizer.chat_template": 3}, "chat template 'default' of the file is not a string"),
    ],
)
def test_malformed_metadata_is_named(changes: dict[str, Any], message: str) -> None:
    data = {**sentencepiece(_WORDS), **changes}
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_gguf({key: value for key, value in data.items() if value is not None})


def test_ids_outside_the_vocabulary_do_not_count() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece(_WORDS, eos_token_id=2**32 - 1))
    assert tokenizer.eos_id == 2
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_a_byte_level_file_without_merges_is_refused() -> None:
    data = _byte_level([])
    del data["tokenizer.ggml.merges"]
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.merges"):
        tokenizer_from_gguf(data)


def test_an_unknown_pre_tokenizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TokenizerError, match=r"unknown pre-tokenizer 'gpt-9'.*smollm.*tekken"):
        tokenizer_from_gguf({**_byte_level([]), "tokenizer.ggml.pre": "gpt-9"})


@pytest.mark.parametrize("pre", known_pre_tokenizers())
def test_every_family_keeps_every_byte(pre: str) -> None:
    tokenizer = tokenizer_from_gguf({**_byte_level([]), "tokenizer.ggml.pre": pre})
    text = "It's 1234567 Größe, 漢字かな  한국어\r\n\n\tx= 'LL ✅ a\u0301 <sentinel:7> end  "
    plain = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")
    if pre not in plain:  # plain text, no bytes
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("some", [0, 1, 2, 256])
def test_where_one_text_is_expected_a_letter_is_spelt_as_ever(some: int) -> None:
    """One that has no token but a merge, which does not occur in the text; by such bytes as there
    are."""
    spelt = [*"é".encode(), *set(range(256)).difference("é".encode())][:some]
    words = {f"<0x{byte:02X}>": (BYTE, 0.0) for byte in spelt} | {"a": (NORMAL, 0.0)}
    data = metadata("gpt2", words, pre="gemma4", merges=["é a"])
    one, any_number = tokenizer_from_gguf(data), tokenizer_from_gguf(data)
    assert one.expect_one_text()
    assert one.encode("aé") == any_number.encode("aé") == [some, *range(min(some, 2))]


def test_turn_ends_inside_a_harmony_message() -> None:
    words = {"<|return|>": 0.0, "<|call|>": 0.0, "<|end|>": 0.0, "<|channel|>": 0.0}
    data = sentencepiece(words)
    tokens = data["tokenizer.ggml.tokens"]
    tokenizer = tokenizer_from_gguf(data)
    assert tokens.index("<|return|>") in tokenizer.stop_ids
    assert tokens.index("<|end|>") not in tokenizer.stop_ids
    assert tokenizer.token_bytes(tokens.index("<|channel|>")) == b"<|channel|>"


def test_byte_tokens() -> None:
    data = metadata("llama", {"<unk>": (UNKNOWN, 0.0), "<0x41>": (BYTE, 0.0), "▁": (NORMAL, 0.0)})
    tokenizer = tokenizer_from_gguf(data)
    assert tokenizer.token_bytes(1) == b"A"
    assert tokenizer.encode("é") == [2, 0, 0]  # no token for either byte: unknown
