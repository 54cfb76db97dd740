"""Streaming: whatever the ids, the pieces joined are the whole; no character comes in halves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.errors import UsageError
from strata.text import Tokenizer, tokenizer_from_gguf
from strata.text.bpe import BYTE_LETTERS, letters_to_bytes
from support.small_vocabularies import CONTROL, NORMAL, USER_DEFINED, metadata, sentencepiece


def _byte_level() -> dict[str, Any]:
    tokens = dict.fromkeys(BYTE_LETTERS, (NORMAL, 0.0))
    for text in ("é", "€", "😀", " the", "\u0301"):
        letters = "".join(BYTE_LETTERS[byte] for byte in text.encode())
        tokens |= {letters: (NORMAL, 0.0), letters[1:]: (NORMAL, 0.0), letters[:-1]: (NORMAL, 0.0)}
    tokens |= {"<|end|>": (CONTROL, 0.0), "<tool é>": (USER_DEFINED, 0.0)}
    return metadata("gpt2", tokens, merges=[], pre="gpt-2")


_TOKENIZERS = [
    tokenizer_from_gguf(_byte_level()),
    tokenizer_from_gguf(sentencepiece({"▁": 0.0, "▁a": 0.0, "é": 0.0, "▁▁": 0.0, "😀": 0.0})),
]
_CASES = st.sampled_from(_TOKENIZERS).flatmap(
    lambda tokenizer: st.tuples(
        st.just(tokenizer),
        st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=40),
        st.booleans(),
        st.booleans(),
    )
)


@settings(max_examples=400, deadline=None)
@given(_CASES)
def test_pieces_joined_are_the_whole(case: tuple[Tokenizer, list[int], bool, bool]) -> None:
    tokenizer, ids, skip, continuing = case
    stream = tokenizer.stream(skip_special=skip, continuing=continuing)
    pieces = [stream.push(id) for id in ids]
    whole = tokenizer.decode(ids, skip_special=skip, continuing=continuing)
    assert "".join(pieces) + stream.finish() == whole
    data = b"".join(tokenizer.token_bytes(id, special=not skip) for id in ids)
    assert whole in {data.decode("utf-8", "replace"), data[1:].decode("utf-8", "replace")}


def _ids_of_bytes(tokenizer: Tokenizer) -> list[int]:
    ids = {tokenizer.token_bytes(id): id for id in reversed(range(tokenizer.vocab_size))}
    return [ids[bytes([byte])] for byte in range(256)]


@pytest.mark.parametrize("tokenizer", _TOKENIZERS, ids=["byte level", "byte fallback"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_valid_text_is_never_replaced(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream(continuing=True)
    ids = _ids_of_bytes(tokenizer)
    seen = ""
    for byte in text.encode():
        seen += stream.push(ids[byte])
        assert text.startswith(seen)  # never half a character, never a wrong one
    assert seen == text
    assert stream.finish() == ""


def test_half_a_character_at_the_end_is_replaced() -> None:
    tokenizer = _TOKENIZERS[0]
    stream = tokenizer.stream()
    ids = _ids_of_bytes(tokenizer)
    assert stream.push(ids[0xF0]) == ""
    assert stream.push(ids[0x9F]) == ""
    assert stream.finish() == "\ufffd"


def test_the_first_space_alone_is_stripped() -> None:
    tokenizer = _TOKENIZERS[1]
    space = next(id for id in range(400) if tokenizer.token_bytes(id) == b" " and id > 258)
    assert tokenizer.decode([space, space]) == " "
    assert tokenizer.decode([1, space, space]) == " "
    assert tokenizer.decode([space, space], continuing=True) == "  "


def test_letters_of_the_byte_table() -> None:
    assert letters_to_bytes("Ġhé") == b" h\xe9"
    assert letters_to_bytes("漢") == "漢".encode()
    assert len(set(BYTE_LETTERS)) == 256


def test_negative_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="-1"):
        _TOKENIZERS[0].decode([-1])
