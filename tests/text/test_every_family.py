"""Ids of every pre-tokenizer and kind of vocabulary against those that llama.cpp gives.

The vocabularies are made up (`support/small_vocabularies.py`); `tools/make_text_goldens.py` wrote
what llama.cpp makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from strata.formats.gguf_writer import write_gguf
from strata.text import TokenizerError, tokenizer_from_gguf
from strata.text.pretokenizers import known_pre_tokenizers
from support.hard_texts import TEXTS, noise
from support.small_vocabularies import joining, plamo2, rwkv, vocabularies, wordpiece

_GOLDENS = json.loads((Path(__file__).parent / "goldens" / "families.json").read_text())
_MERGES = _GOLDENS["merges"]
_IDS: dict[str, list[tuple[str, list[int]]]] = {}
for _entry in _GOLDENS["texts"]:
    for _group in _entry["ids"]:
        for _name in _group["names"]:
            _IDS.setdefault(_name, []).append((_entry["text"], _group["ids"]))


def _metadata(name: str) -> Mapping[str, Any]:
    if name.startswith("pre "):
        return joining(_MERGES, pre=name.removeprefix("pre "))
    return vocabularies(_MERGES)[name]


def test_all_are_there() -> None:
    families = {f"pre {pre}" for pre in known_pre_tokenizers() if pre != "whitespace"}
    assert families | vocabularies(_MERGES).keys() == _IDS.keys()
    assert len({json.dumps(ids) for ids in _IDS.values()}) > 35


@pytest.mark.parametrize("name", sorted(_IDS))
def test_ids_are_llama_cpps(name: str) -> None:
    tokenizer = tokenizer_from_gguf(_metadata(name))
    for text, ids in _IDS[name]:
        assert tokenizer.encode(text, add_special=True, parse_special=True) == ids, text


@pytest.mark.parametrize("name", sorted(_IDS))
def test_ids_are_the_same_where_one_text_is_expected(name: str) -> None:
    """Each text has an engine of its own, which knows what may occur in it alone."""
    tokenizer = tokenizer_from_gguf(_metadata(name))
    # The first long one has all of the vocabulary built.
    for text, ids in sorted(_IDS[name], key=lambda case: len(case[0])):
        if tokenizer.expect_one_text():
            assert tokenizer.encode(text, add_special=True, parse_special=True) == ids, text


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(_IDS))
def test_live(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    metadata = _metadata(name)
    path = tmp_path / "vocabulary.gguf"
    write_gguf(path, {"general.architecture": "llama", **metadata}, [])
    tokenizer = tokenizer_from_gguf(metadata)
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in [*TEXTS, *noise(seed=7, count=300)]:
        for parse in (False, True):
            expected = peer.tokenize(text.encode(), add_bos=True, special=parse)
            ids = tokenizer.encode(text, add_special=True, parse_special=parse)
            assert ids == expected, (text, parse)
    buffer = (llama_cpp.ctypes.c_char * 1024)()
    for id in range(tokenizer.vocab_size):
        for special in (False, True):
            size = llama_cpp.llama_token_to_piece(peer._model.vocab, id, buffer, 1024, 0, special)
            piece = buffer.raw[:size]
            if not piece.startswith(b"[UNK_BYTE_"):
                assert tokenizer.token_bytes(id, special=special) == piece, id
    peer.close()


def test_what_a_vocabulary_must_have_is_named() -> None:
    data = plamo2()
    data["tokenizer.ggml.tokens"][4 + 0x41] = "other"
    with pytest.raises(TokenizerError, match="no token <0x41>"):
        tokenizer_from_gguf(data)
    data = rwkv()
    data["tokenizer.ggml.tokens"][1 + 0xC3] = "other"
    assert tokenizer_from_gguf({**data, "tokenizer.ggml.unknown_token_id": 0}).encode("\xe9") == [
        0,
        1 + 0xA9,
    ]
    with pytest.raises(TokenizerError, match="no token for byte 0xC3 and no unknown token"):
        tokenizer_from_gguf(data).encode("\xe9")
    data = wordpiece()
    data["tokenizer.ggml.unknown_token_id"] = 2**32 - 1
    with pytest.raises(TokenizerError, match="a WordPiece vocabulary needs"):
        tokenizer_from_gguf(data)


@pytest.mark.parametrize("name", [name for name in _IDS if not name.startswith("pre ")])
def test_a_long_text_is_encoded_in_bounded_memory(name: str) -> None:
    tokenizer = tokenizer_from_gguf(_metadata(name))
    text = "the quick brown fox \n" * 200
    once = tokenizer.encode(text)
    assert tokenizer.encode(text * 3) == once * 3
    # Lists of ids of a part stay small, and so does what a part is said to take.
    assert max(map(len, tokenizer.encode_parts(text * 3))) < 2500
    assert tokenizer.working_bytes(text * 3) < (1 << 20)
