"""Hugging Face directories: the engine's own ids, bytes, special tokens and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Engine

from strata.errors import StrataError, UsageError
from strata.formats.errors import FormatError
from strata.text import Tokenizer, TokenizerError, tokenizer_from_directory
from strata.text.bpe import BYTE_LETTERS
from support.hard_texts import TEXTS, noise

_SPECIAL = ["<s>", "</s>", "<|im_end|>"]


def byte_level_engine() -> Engine:
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("in", "g"), ("Ã", "©"), ("1", "2")]
    words = [*_SPECIAL, *BYTE_LETTERS, *("".join(pair) for pair in merges)]
    engine = Engine(models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=merges))
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s*\p{L}+|[^\p{L}\p{N}]+"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(_SPECIAL)
    engine.add_tokens([AddedToken("<tool é>", normalized=False)])
    return engine


def byte_fallback_engine() -> Engine:
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁")]
    words = ["<unk>", *_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theaé"]
    words += ["".join(pair) for pair in merges]
    engine = Engine(
        models.BPE(
            vocab={word: id for id, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    engine.add_special_tokens(["<unk>", *_SPECIAL])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return engine


def unigram_engine() -> Engine:
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -3.0)]
    words += [(letter, -5.0) for letter in "thea"]
    engine = Engine(models.Unigram(words, unk_id=0))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


def wordpiece_engine() -> Engine:
    words = ["[UNK]", "<s>", "</s>", *"theaé", *(f"##{c}" for c in "theaé"), "the", "##ta"]
    engine = Engine(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)
    engine.add_special_tokens(["[UNK]", "<s>", "</s>"])
    return engine


def words_engine() -> Engine:
    """Without a decoder."""
    words = ["<unk>", "<s>", "</s>", "the", "é"]
    engine = Engine(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


ENGINES = {
    "byte level": byte_level_engine,
    "byte fallback": byte_fallback_engine,
    "unigram": unigram_engine,
    "wordpiece": wordpiece_engine,
    "words": words_engine,
}


def write(path: Path, engine: Engine, **files: Any) -> Tokenizer:
    """A model directory; a keyword `a_b` is the file a_b.json."""
    path.mkdir(exist_ok=True)
    engine.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return tokenizer_from_directory(path)


@pytest.mark.parametrize("name", list(ENGINES))
def test_ids_and_texts_are_the_engines_own(name: str, tmp_path: Path) -> None:
    engine = ENGINES[name]()
    tokenizer = write(tmp_path, engine)
    assert tokenizer.vocab_size == engine.get_vocab_size()
    for text in [*TEXTS, *noise(seed=8, count=100), "the<|im_end|> the</s>", "<tool é>x"]:
        special = engine.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, parse_special=True) == special
        if text:
            with_special = engine.encode(text, add_special_tokens=True).ids
            encoded = tokenizer.encode(text, parse_special=True, add_special=True)
            assert encoded == with_special
        plain = tokenizer.encode(text)
        if not any(word in text for word in (*_SPECIAL, "<unk>")):
            assert plain == special
        elif name not in ("unigram", "words"):
            # Whose own vocabularies hold the names of special tokens.
            controls = {engine.token_to_id(word) for word in _SPECIAL}
            assert not controls & set(plain)


@pytest.mark.parametrize("name", list(ENGINES))
def test_decoding_valid_text_equals_the_engines(name: str, tmp_path: Path) -> None:
    engine = ENGINES[name]()
    tokenizer = write(tmp_path, engine)
    for text in [*TEXTS, "<s>the the</s> the", "  the", "the é the"]:
        ids = tokenizer.encode(text, parse_special=True)
        for skip in (True, False):
            expected = engine.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special=skip) == expected, text


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 275), max_size=30), skip=st.booleans())
def test_streaming_any_ids(ids: list[int], skip: bool) -> None:
    for tokenizer in _streamed():
        stream = tokenizer.stream(skip_special=skip)
        pieces = [stream.push(id) for id in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special=skip)


_CACHE: list[Tokenizer] = []


def _streamed() -> list[Tokenizer]:
    if not _CACHE:
        import tempfile

        for make in ENGINES.values():
            with tempfile.TemporaryDirectory() as directory:
                _CACHE.append(write(Path(directory), make()))
    return _CACHE


def test_user_added_tokens_are_always_recognised(tmp_path: Path) -> None:
    engine = byte_level_engine()
    tokenizer = write(tmp_path, engine)
    tool = engine.token_to_id("<tool é>")
    assert tokenizer.encode("<tool é>") == [tool]
    assert tokenizer.token_bytes(tool) == "<tool é>".encode()
    end = engine.token_to_id("<|im_end|>")
    assert tokenizer.token_bytes(end) == b""
    assert tokenizer.token_bytes(end, special=True) == b"<|im_end|>"


def test_what_surrounds_a_prompt(tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    by_post_processor = write(tmp_path / "a", byte_fallback_engine(), tokenizer_config=names)
    assert (by_post_processor.bos_id, by_post_processor.eos_id) == (1, 2)
    assert (by_post_processor.add_bos, by_post_processor.add_eos) == (True, True)
    assert by_post_processor.encode("", add_special=True) == [1, 2]
    assert by_post_processor.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}

    # The post-processor is what transformers goes by; the settings count only where there is none.
    config = {**names, "add_bos_token": True, "add_eos_token": False}
    both = write(tmp_path / "b", byte_fallback_engine(), tokenizer_config=config)
    assert (both.add_bos, both.add_eos) == (True, True)
    by_config = write(tmp_path / "c", byte_level_engine(), tokenizer_config=config)
    assert (by_config.add_bos, by_config.add_eos) == (True, False)

    neither = write(tmp_path / "d", byte_level_engine(), special_tokens_map=names)
    assert (neither.bos_id, neither.add_bos, neither.add_eos) == (0, False, False)


def test_stop_ids_come_from_all_settings(tmp_path: Path) -> None:
    tokenizer = write(
        tmp_path,
        byte_level_engine(),
        tokenizer_config={"eos_token": "</s>"},
        generation_config={"eos_token_id": [2, 7]},
        config={"eos_token_id": 9},
    )
    assert tokenizer.stop_ids == {1, 2, 7, 9}


def test_tokens_that_only_the_configuration_declares(tmp_path: Path) -> None:
    engine = byte_level_engine()
    size = engine.get_vocab_size()
    declared = {
        "1": {"content": "</s>", "special": True},
        str(size): {"content": "<|extra|>", "special": True},
        str(size + 1): {"content": "<note>", "special": False},
    }
    tokenizer = write(tmp_path, engine, tokenizer_config={"added_tokens_decoder": declared})
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.encode("<|extra|>", parse_special=True) == [size]
    assert tokenizer.encode("<note>") == [size + 1]


def test_templates_from_files_and_configuration(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    config: dict[str, Any] = {"bos_token": "<s>", "chat_template": "config {{ bos_token }}"}
    tokenizer = write(tmp_path, byte_level_engine(), tokenizer_config=config)
    assert tokenizer.apply_chat_template(chat) == "config <s>"

    config["chat_template"] = [
        {"name": "default", "template": "one"},
        {"name": "tool_use", "template": "two"},
    ]
    tokenizer = write(tmp_path, byte_level_engine(), tokenizer_config=config)
    assert tokenizer.apply_chat_template(chat, tools=[{"name": "f"}]) == "two"

    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag file")
    tokenizer = tokenizer_from_directory(tmp_path)
    assert sorted(tokenizer.chat_templates) == ["default", "rag"]
    assert tokenizer.apply_chat_template(chat, chat_template="rag") == "rag file"


def test_truncation_of_the_file_is_ignored(tmp_path: Path) -> None:
    engine = byte_level_engine()
    engine.enable_truncation(4)
    engine.enable_padding(length=9)
    assert len(write(tmp_path, engine).encode("abcdefgh")) == 8


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: "):
        tokenizer_from_directory(tmp_path)
    engine = byte_level_engine()
    engine.decoder = decoders.BPEDecoder()
    with pytest.raises(TokenizerError, match=r"decoder .*BPEDecoder.* is not known"):
        write(tmp_path, engine)
    engine.decoder = decoders.ByteLevel()
    with pytest.raises(FormatError):
        write(tmp_path, engine, generation_config=[1])
    with pytest.raises(StrataError):
        write(tmp_path, engine, generation_config={}, tokenizer_config={"chat_template": [1]})
    with pytest.raises(UsageError):
        write(tmp_path, engine, tokenizer_config={}).token_bytes(-1)
