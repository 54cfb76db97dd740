"""The built-in model's ids against committed ones, from both kinds of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strata.formats import open_model
from strata.text import Tokenizer, load_tokenizer, tokenizer_from_directory
from strata.text.pretokenizers import pre_tokenizer

_GOLDENS = json.loads((Path(__file__).parent / "goldens" / "smollm2.json").read_text())


@pytest.fixture(scope="module")
def metadata(smollm2_path: Path) -> dict[str, Any]:
    with open_model(smollm2_path) as model:
        return dict(model.metadata)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    with open_model(smollm2_path) as model:
        return load_tokenizer(model)


def test_one_text_needs_a_part_of_the_vocabulary(smollm2_path: Path) -> None:
    with open_model(smollm2_path) as model:
        tokenizer = load_tokenizer(model)
    for entry in [entry for entry in _GOLDENS if len(entry["text"]) < 400][::24]:
        assert tokenizer.expect_one_text()
        assert tokenizer.encode(entry["text"]) == entry["ids"], entry["text"]


def _check(tokenizer: Tokenizer) -> None:
    exact = 0
    for entry in _GOLDENS:
        text = entry["text"]
        assert tokenizer.encode(text) == entry["ids"], text
        special = entry.get("special", entry["ids"])
        assert tokenizer.encode(text, parse_special=True) == special, text
        # The vocabulary lacks some bytes (control characters, private use): those are lost.
        if sum(len(tokenizer.token_bytes(id)) for id in entry["ids"]) == len(text.encode()):
            exact += 1
            assert tokenizer.decode(entry["ids"]) == text
            assert tokenizer.decode(special, skip_special=False) == text
    assert exact > 90


def test_ids_equal_those_of_llama_cpp(smollm2: Tokenizer) -> None:
    assert len(_GOLDENS) > 100
    _check(smollm2)


def test_special_ids(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_id, smollm2.eos_id) == (1, 2)
    assert (smollm2.add_bos, smollm2.add_eos) == (False, False)
    assert smollm2.stop_ids == {0, 2, 4}  # <|endoftext|>, <|im_end|>, <repo_name>
    assert smollm2.encode("hi", add_special=True) == smollm2.encode("hi")


def test_lone_surrogates_are_replacement_characters(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a\ud800b") == smollm2.encode("a\ufffdb")


def test_chat(smollm2: Tokenizer) -> None:
    prompt = smollm2.apply_chat_template([{"role": "user", "content": "hi"}])
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.encode(prompt, parse_special=True)[0] == smollm2.bos_id


def test_the_same_vocabulary_as_tokenizer_json(metadata: dict[str, Any], tmp_path: Path) -> None:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    split = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre_tokenizer("smollm").patterns
    ]
    letters = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    special = [
        {
            "id": id,
            "content": tokens[id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for id, kind in enumerate(kinds)
        if kind == 3
    ]
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": special,
                "normalizer": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, letters]},
                "post_processor": None,
                "decoder": letters,
                "model": {
                    "type": "BPE",
                    "vocab": {token: id for id, token in enumerate(tokens)},
                    "merges": list(metadata["tokenizer.ggml.merges"]),
                },
            }
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    tokenizer = tokenizer_from_directory(tmp_path)
    _check(tokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, {0, 2})
