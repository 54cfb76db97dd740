"""pull, list, show and rm, as a person runs them, against the stand-in hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from strata.cli import main
from support.stand_in_hub import Repository, StandInHub

GGUFS = {"m.Q8_0.gguf": bytes(5000), "m.Q2_K.gguf": bytes(2000)}


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "strata"))


def test_a_model_from_pull_to_rm(hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    code, out, err = run("pull", "user/repo:q8_0", "--json", capsys=capsys)
    assert (code, err) == (0, "")
    path = Path(json.loads(out)["path"])
    assert path.name == "m.Q8_0.gguf"

    code, out, err = run("list", "--json", capsys=capsys)
    assert (code, err) == (0, "")
    builtin, pulled = json.loads(out)["models"]
    assert (builtin["name"], builtin["quant"], builtin["path"]) == ("smollm2", "Q4_1", None)
    assert (pulled["name"], pulled["size_bytes"]) == ("user/repo:Q8_0", 5000)
    assert pulled["path"] == str(path)
    code, out, _ = run("list", capsys=capsys)
    assert "not downloaded" in out.splitlines()[1]
    assert out.splitlines()[2].startswith("user/repo:Q8_0  Q8_0   5.00 kB")

    code, out, err = run("rm", "user/repo", capsys=capsys)
    assert (code, out) == (2, "")
    assert err == "strata: error: removing user/repo frees 5.00 kB; say --yes to do it\n"
    assert path.exists()
    code, out, _ = run("rm", "user/repo", "--yes", "--json", capsys=capsys)
    assert (code, json.loads(out)) == (0, {"removed": "user/repo", "freed_bytes": 5000})
    assert not path.exists()
    code, out, err = run("rm", "user/repo", "--yes", "--json", capsys=capsys)
    assert (code, json.loads(out)["error"]["type"]) == (1, "ModelNotFound")
    assert err.startswith("strata: error: user/repo is not in the cache")


def test_progress_is_drawn_on_standard_error_only(hub: StandInHub, tmp_path: Path) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
    }
    command = [sys.executable, "-m", "strata", "pull", "user/repo:q8_0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (path,) = done.stdout.splitlines()
    assert Path(path).read_bytes() == GGUFS["m.Q8_0.gguf"]
    assert path.startswith(str(tmp_path / "hf-home" / "hub" / "models--user--repo"))
    assert "m.Q8_0.gguf" in done.stderr
    quiet = subprocess.run(
        [*command[:-1], "user/repo:q2_k", "--quiet"], env=environment, capture_output=True
    )
    assert (quiet.returncode, quiet.stderr) == (0, b"")


def test_pull_refuses_what_is_here_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.gguf").touch()
    for verb in ("pull", "rm"):
        code, out, err = run(verb, str(tmp_path / "a.gguf"), capsys=capsys)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
    assert (tmp_path / "a.gguf").exists()


def test_show_tells_what_the_header_says(
    smollm2_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run("show", str(smollm2_path), "--json", "--tensors", capsys=capsys)
    assert (code, err) == (0, "")
    shown = json.loads(out)
    expected = {
        "format": "gguf",
        "architecture": "llama",
        "license": "apache-2.0",
        "parameters": 134_515_008,
        "layers": 30,
        "embedding_length": 576,
        "heads": 9,
        "kv_heads": 3,
        "context_length": 8192,
        "vocabulary": 49152,
        "tokenizer": "gpt2 (smollm)",
        "chat_template": True,
        "tensor_count": 272,
    }
    assert {key: shown[key] for key in expected} == expected
    assert shown["files"] == [{"path": str(smollm2_path), "size_bytes": 98_362_432}]
    assert [share["type"] for share in shown["types"]] == ["Q4_1", "Q8_0", "F32"]
    assert len(shown["tensors"]) == 272
    for share in shown["types"]:
        of_type = [tensor for tensor in shown["tensors"] if tensor["type"] == share["type"]]
        assert len(of_type) == share["tensors"]
        assert sum(tensor["size_bytes"] for tensor in of_type) == share["size_bytes"]

    code, out, _ = run("show", str(smollm2_path), "--tensors", capsys=capsys)
    assert code == 0
    assert "134.52 M" in out
    assert "token_embd.weight" in out


def test_show_never_downloads(hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    code, _, err = run("show", "user/repo", capsys=capsys)
    assert code == 1
    assert "strata pull user/repo" in err
    assert hub.asked == []


def test_show_reads_a_hugging_face_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(24)
    )
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    code, out, err = run("show", str(tmp_path), "--json", capsys=capsys)
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert (shown["format"], shown["architecture"], shown["layers"]) == ("huggingface", "llama", 2)
    assert (shown["parameters"], shown["heads"], shown["kv_heads"]) == (6, 4, 4)
    assert (shown["tokenizer"], shown["chat_template"]) == ("tokenizer.json", True)


def test_listing_needs_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    code, out, _ = run("list", "--json", capsys=capsys)
    assert code == 0
    assert [model["name"] for model in json.loads(out)["models"]] == ["smollm2"]
