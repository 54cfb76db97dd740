"""Ids against llama.cpp: its committed expectations, and its tokenizer run beside ours.

The vocabularies are GGUF files without tensors. They come from the directory that
$STRATA_TEST_VOCABS names, else from the source archive of llama-cpp-python, fetched through pip.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.formats import open_model
from strata.text import Tokenizer, load_tokenizer, tokenizer_from_gguf
from strata.text.pretokenizers import known_pre_tokenizers
from support.hard_texts import TEXTS, noise

pytestmark = pytest.mark.slow

_ARCHIVE = "llama-cpp-python==0.3.36"
_NAMES = [
    "aquila",
    "baichuan",
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "gpt-neox",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "nomic-bert-moe",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
]
_WITH_EXPECTATIONS = set(_NAMES) - {"aquila", "baichuan", "gpt-neox", "nomic-bert-moe"}


@pytest.fixture(scope="session")
def vocabularies() -> Path:
    given = os.environ.get("STRATA_TEST_VOCABS")
    if given:
        return Path(given)
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "strata-tests" / "vocabs"
    )
    if not (cache / "complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", str(cache), _ARCHIVE], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"$STRATA_TEST_VOCABS is not set and pip cannot fetch {_ARCHIVE}")
        (archive,) = cache.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            for member in files:
                name = Path(member.name).name
                source = files.extractfile(member) if name.startswith("ggml-vocab-") else None
                if source is not None:
                    (cache / name).write_bytes(source.read())
        archive.unlink()
        (cache / "complete").touch()
    return cache


def _load(directory: Path, name: str) -> tuple[Tokenizer, dict[str, Any]]:
    path = directory / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the vocabularies")
    with open_model(path) as model:
        assert not model.tensors
        return load_tokenizer(model), dict(model.metadata)


@contextlib.contextmanager
def _peer(path: Path, **overrides: str) -> Iterator[Any]:
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed: no live comparison"
    )
    changes = {f"tokenizer.ggml.{key}": value for key, value in overrides.items()}
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False, kv_overrides=changes or None)
    yield llama
    llama.close()


@pytest.mark.parametrize("name", sorted(_WITH_EXPECTATIONS))
def test_committed_expectations(vocabularies: Path, name: str) -> None:
    tokenizer, _ = _load(vocabularies, name)
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_bytes().decode()
    expected = path.with_name(path.name + ".out").read_text().splitlines()
    cases = texts.split("\n__ggml_vocab_test__\n")
    assert len(cases) > 40
    for text, ids in zip(cases, expected, strict=False):
        assert tokenizer.encode(text) == [int(id) for id in ids.split()], text


@pytest.mark.parametrize("name", _NAMES)
def test_live(vocabularies: Path, name: str) -> None:
    tokenizer, _ = _load(vocabularies, name)
    with _peer(vocabularies / f"ggml-vocab-{name}.gguf") as peer:
        for text in [*TEXTS, *noise(seed=3, count=400)]:
            for add, parse in ((False, False), (False, True), (True, False), (True, True)):
                expected = peer.tokenize(text.encode(), add_bos=add, special=parse)
                ids = tokenizer.encode(text, add_special=add, parse_special=parse)
                assert ids == expected, (text, add, parse)


def _or_none(id: int) -> int | None:
    return None if id == -1 else id


@pytest.mark.parametrize("name", _NAMES)
def test_every_token(vocabularies: Path, name: str) -> None:
    tokenizer, _ = _load(vocabularies, name)
    with _peer(vocabularies / f"ggml-vocab-{name}.gguf") as peer:
        import llama_cpp

        vocab = peer._model.vocab
        assert tokenizer.vocab_size == llama_cpp.llama_vocab_n_tokens(vocab)
        assert tokenizer.add_bos == llama_cpp.llama_vocab_get_add_bos(vocab)
        assert tokenizer.add_eos == llama_cpp.llama_vocab_get_add_eos(vocab)
        assert (-1 if tokenizer.bos_id is None else tokenizer.bos_id) == llama_cpp.llama_vocab_bos(
            vocab
        )
        assert (-1 if tokenizer.eos_id is None else tokenizer.eos_id) == llama_cpp.llama_vocab_eos(
            vocab
        )
        ids = range(tokenizer.vocab_size)
        stops = {id for id in ids if llama_cpp.llama_vocab_is_eog(vocab, id)}
        assert tokenizer.stop_ids == stops
        buffer = (llama_cpp.ctypes.c_char * 1024)()
        for id in ids:
            for special in (False, True):
                size = llama_cpp.llama_token_to_piece(vocab, id, buffer, 1024, 0, special)
                piece = buffer.raw[:size]
                # There a letter outside the byte table is a message, here it is itself.
                if not piece.startswith(b"[UNK_BYTE_"):
                    assert tokenizer.token_bytes(id, special=special) == piece, id


@pytest.mark.parametrize("pre", [pre for pre in known_pre_tokenizers() if pre != "whitespace"])
def test_every_pre_tokenizer(vocabularies: Path, pre: str) -> None:
    """Any family can run on any byte-level vocabulary: this one is small and complete."""
    _, metadata = _load(vocabularies, "gpt-2")
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": pre})
    with _peer(vocabularies / "ggml-vocab-gpt-2.gguf", pre=pre) as peer:
        for text in [*TEXTS, *noise(seed=5, count=150)]:
            expected = peer.tokenize(text.encode(), add_bos=True, special=False)
            assert tokenizer.encode(text, add_special=True) == expected, text
