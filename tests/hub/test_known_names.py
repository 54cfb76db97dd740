"""Names as people type them: the table, the hub's cache, and what other programs have here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from strata.hub.cache import HubRef
from strata.hub.downloads import ModelNotFound
from strata.hub.known_names import known_names, known_repository, split_name
from strata.hub.other_stores import ollama_model
from strata.hub.references import Builtin, LocalPath, meaning, parse, resolve
from strata.synth import SHAPES

NOBODY_HAS = {"mamba2-2.7b", "rwkv7-1.5b"}
"""Shapes whose published files are of another kind."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("llama3.2:1b", HubRef("bartowski/Llama-3.2-1B-Instruct-GGUF")),
        ("llama3.2", HubRef("bartowski/Llama-3.2-3B-Instruct-GGUF")),
        ("Llama-3.2-1B-Instruct", HubRef("bartowski/Llama-3.2-1B-Instruct-GGUF")),
        ("llama3.2:1b-instruct-q8_0", HubRef("bartowski/Llama-3.2-1B-Instruct-GGUF", "Q8_0")),
        ("llama-3.1-8b:Q4_K_M", HubRef("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "Q4_K_M")),
        ("qwen3:30b-a3b", HubRef("unsloth/Qwen3-30B-A3B-GGUF")),
        ("gpt-oss:20b", HubRef("ggml-org/gpt-oss-20b-GGUF")),
        ("gemma3:27b-it-fp16", HubRef("unsloth/gemma-3-27b-it-GGUF", "F16")),
        ("smollm2:latest", Builtin("smollm2")),
        ("smollm2:135m", Builtin("smollm2")),
        ("smollm2:1.7b", HubRef("bartowski/SmolLM2-1.7B-Instruct-GGUF")),
    ],
)
def test_the_table(typed: str, expected: object) -> None:
    assert parse(typed) == expected


def test_every_entry_is_found_by_its_own_name() -> None:
    repository = re.compile(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+")
    for name in known_names():
        found = known_repository(split_name(name)[0])
        assert found is not None
        assert repository.fullmatch(found)


def test_every_shape_of_the_catalogue_has_its_repository() -> None:
    shapes = [name for name in SHAPES if not name.startswith("tiny-")]
    assert {name for name in shapes if known_repository(split_name(name)[0]) is None} == NOBODY_HAS


def test_what_nobody_knows_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelNotFound, match=r"did you mean llama3\.2:1b\?"):
        parse("lama3.2:1b")


def test_without_a_network_the_command_to_type_is_named() -> None:
    with pytest.raises(ModelNotFound, match="run `strata pull ggml-org/gpt-oss-20b-GGUF`"):
        resolve("gpt-oss:20b", offline=True)


def cached(home: Path, repo: str, file: str) -> Path:
    commit = "0" * 40
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    path = folder / "snapshots" / commit / file
    path.write_bytes(b"GGUF")
    return path


def test_what_is_cached_from_another_publisher_is_used(home: Path) -> None:
    path = cached(home, "unsloth/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_0.gguf")
    assert resolve("llama3.2:1b", offline=True) == path
    assert parse("llama3.2:1b:Q8_0") == HubRef("bartowski/Llama-3.2-1B-Instruct-GGUF", "Q8_0")
    assert meaning("llama3.2:1b") == (
        "llama3.2:1b is unsloth/Llama-3.2-1B-Instruct-GGUF:Q4_0 of the Hugging Face hub"
    )
    assert meaning("smollm2") is None


def test_what_is_cached_and_in_no_table_is_found(home: Path) -> None:
    path = cached(home, "somebody/Own-Model-7B-GGUF", "own.Q4_K_M.gguf")
    assert resolve("own-model-7b", offline=True) == path


def test_lm_studio(home: Path) -> None:
    folder = home / ".lmstudio/models/somebody/Own-Model-7B-GGUF"
    folder.mkdir(parents=True)
    (folder / "own-Q4_K_M.gguf").touch()
    assert parse("own-model:7b") == LocalPath(folder / "own-Q4_K_M.gguf")
    assert meaning("own-model:7b") == f"own-model:7b is {folder / 'own-Q4_K_M.gguf'}"
    with pytest.raises(ModelNotFound):
        parse("own-model:7b-q8_0")


def test_ollama(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = home / ".ollama/models"
    manifests = store / "manifests/registry.ollama.ai/library/llama3.2"
    manifests.mkdir(parents=True)
    digest = "ab" * 32
    model = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{digest}",
        "size": 4,
    }
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0"}
    (manifests / "1b").write_text(json.dumps({"layers": [template, model]}))
    assert parse("llama3.2:1b") == HubRef("bartowski/Llama-3.2-1B-Instruct-GGUF"), "no blob"
    (store / "blobs").mkdir()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.write_bytes(b"GGUF")
    assert parse("llama3.2:1b") == LocalPath(blob)
    assert parse("llama3.2") == HubRef("bartowski/Llama-3.2-3B-Instruct-GGUF"), "no latest here"
    for broken in ("", "[]", "{}", '{"layers": [3]}', '{"layers": []}'):
        (manifests / "1b").write_text(broken)
        assert parse("llama3.2:1b") == HubRef("bartowski/Llama-3.2-1B-Instruct-GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "elsewhere"))
    assert isinstance(parse("llama3.2:1b"), HubRef)


@pytest.mark.parametrize("typed", ["..:1b", "llama3.2:..", "a:b:c", ".:."])
def test_no_name_leaves_ollamas_folder(home: Path, typed: str) -> None:
    library = home / ".ollama/models/manifests/registry.ollama.ai/library"
    (library / "llama3.2").mkdir(parents=True)
    manifest = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64}
    for path in (library / "1b", library.parent / "1b"):
        path.write_text(json.dumps({"layers": [manifest]}))
    (home / ".ollama/models/blobs").mkdir()
    (home / ".ollama/models/blobs" / ("sha256-" + "0" * 64)).touch()
    assert ollama_model(typed) is None
