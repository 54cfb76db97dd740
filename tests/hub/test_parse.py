"""What people write to name a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.errors import StrataError, UsageError
from strata.hub.cache import HubRef
from strata.hub.downloads import ModelNotFound
from strata.hub.references import Builtin, LocalPath, parse, resolve


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2", Builtin("smollm2")),
        ("SmolLM2", Builtin("smollm2")),
        ("user/repo", HubRef("user/repo")),
        ("user/repo:Q4_K_M", HubRef("user/repo", quant="Q4_K_M")),
        ("user/repo:q8_0@v1.0", HubRef("user/repo", quant="q8_0", revision="v1.0")),
        ("user/repo@v1.0:q8_0", HubRef("user/repo", quant="q8_0", revision="v1.0")),
        ("user/repo@refs/pr/3", HubRef("user/repo", revision="refs/pr/3")),
        ("user/My-Model_1.5-GGUF", HubRef("user/My-Model_1.5-GGUF")),
        ("user/repo/file.gguf", HubRef("user/repo", file="file.gguf")),
        ("user/repo/sub/file.gguf@main", HubRef("user/repo", None, "main", "sub/file.gguf")),
        ("hf.co/user/repo:Q4_K_M", HubRef("user/repo", quant="Q4_K_M")),
        ("huggingface.co/user/repo", HubRef("user/repo")),
        ("https://huggingface.co/user/repo", HubRef("user/repo")),
        ("https://huggingface.co/user/repo/", HubRef("user/repo")),
        ("https://hf.co/user/repo:Q4_0", HubRef("user/repo", quant="Q4_0")),
        ("https://huggingface.co/user/repo/tree/main", HubRef("user/repo", revision="main")),
        (
            "https://huggingface.co/user/repo/resolve/main/a%20b.gguf?download=true",
            HubRef("user/repo", None, "main", "a b.gguf"),
        ),
    ],
)
def test_forms(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a\0b", "user/", "/repo:", "user/repo:", "user/repo@", "user/repo:Q4@a@b"),
        *("user/repo@a:Q4@b", "user/../repo", "user/repo/../x.gguf", "user/repo@../x"),
        *("https://example.com/user/repo", "ftp://hf.co/user/repo", "user/repo/x.gguf:Q4_0"),
        *("user/repo:Q4 K", "user/re po", "-user/repo", "a/b/c"),
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(StrataError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (UsageError, ModelNotFound))


def test_a_path_that_exists_wins(tmp_path: Path) -> None:
    (tmp_path / "user" / "repo").mkdir(parents=True)
    assert parse("user/repo") == LocalPath(Path("user/repo"))
    (tmp_path / "smollm2").mkdir()
    assert parse("smollm2") == Builtin("smollm2")
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert parse("smollm2") == LocalPath(Path("smollm2"))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("smolm2", "did you mean smollm2?"),
        ("models/lama.gguf", "did you mean models/llama.gguf?"),
        ("./models/llama.ggf", "did you mean models/llama.gguf?"),
        ("nothere/deep/llama.ggf", None),
        ("/nothere/llama.gguf", "nor the folder /nothere"),
    ],
)
def test_a_typing_error_gets_the_nearest_name(tmp_path: Path, text: str, hint: str | None) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama.gguf").write_bytes(b"GGUF")
    with pytest.raises(StrataError) as caught:
        parse(text)
    if hint is not None:
        assert isinstance(caught.value, ModelNotFound)
        assert hint in str(caught.value)


def test_any_part_of_a_split_file_stands_for_the_first(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").touch()
    assert resolve("m-00002-of-00002.gguf") == Path("m-00001-of-00002.gguf")


def test_a_directory_without_a_model_names_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"no config\.json; it has a\.gguf: name one"):
        resolve("folder")
