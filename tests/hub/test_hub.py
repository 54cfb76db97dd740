"""Downloads by the real client over real HTTP from the stand-in hub."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from strata.hub import client as hub_module
from strata.hub.cache import HubRef, cached_models, plan_removal, remove, verify_cached
from strata.hub.downloads import DownloadError, ModelNotFound
from strata.hub.references import resolve
from support.stand_in_hub import Repository, StandInHub


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


GGUFS = {
    "README.md": b"words",
    "model.Q2_K.gguf": content(1, 2000),
    "model.Q4_K_M.gguf": content(2, 3000),
    "model.Q4_K_S.gguf": content(3, 2900),
    "model.Q8_0.gguf": content(4, 5000),
    "mmproj-model-Q4_K_M.gguf": content(5, 1500),
    "imatrix.gguf": content(6, 1200),
}
SAFETENSORS = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": content(7, 4000),
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    ).encode(),
    "model-1-of-2.safetensors": content(8, 6000),
    "model-2-of-2.safetensors": content(9, 6000),
    "consolidated.safetensors": content(10, 9000),
    "pytorch_model.bin": content(11, 9000),
    "onnx/model.onnx": content(12, 9000),
    "onnx/model.safetensors": content(13, 9000),
}


def blobs(hub_cache: str = "") -> list[str]:
    root = Path(hub_cache or constants.HF_HUB_CACHE)
    return sorted(path.name for path in root.glob("models--*/blobs/*"))


@pytest.mark.parametrize("quant", ["Q4_K_M", "q4_k_m", "Q2_K"])
def test_a_quant_name_picks_its_file(hub: StandInHub, quant: str) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    path = resolve(f"user/repo:{quant}")
    assert path.name == f"model.{quant.upper()}.gguf"
    assert path.read_bytes() == GGUFS[path.name]
    # The hub's own cache layout: a link in a snapshot to a blob that is named by its checksum.
    assert path.parent.name == hub.repositories["user/repo"].commit
    assert path.resolve().name == hashlib.sha256(GGUFS[path.name]).hexdigest()
    assert len(blobs()) == 1


def test_without_a_quant_name_the_usual_one_is_picked(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    assert resolve("hf.co/user/repo").name == "model.Q4_K_M.gguf"


def test_an_unknown_quant_name_lists_what_there_is(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    with pytest.raises(ModelNotFound) as caught:
        resolve("user/repo:Q4_K")
    assert str(caught.value) == (
        "user/repo has no GGUF called Q4_K; there is Q2_K (2.00 kB), Q4_K_S (2.90 kB), "
        "Q4_K_M (3.00 kB), Q8_0 (5.00 kB)"
    )
    assert blobs() == []


def test_a_split_model_arrives_whole_and_is_entered_by_its_first_part(hub: StandInHub) -> None:
    parts = {f"Q4_0/big-Q4_0-0000{n}-of-00003.gguf": content(n, 2000) for n in (3, 1, 2)}
    hub.repositories["user/repo"] = Repository(parts)
    path = resolve("user/repo:q4_0")
    assert path.name == "big-Q4_0-00001-of-00003.gguf"
    for name, expected in parts.items():
        assert (path.parents[1] / name).read_bytes() == expected


def test_one_file_can_be_named(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    assert resolve("user/repo/model.Q8_0.gguf").read_bytes() == GGUFS["model.Q8_0.gguf"]
    with pytest.raises(ModelNotFound, match=r"has no model file nothing\.gguf"):
        resolve("user/repo/nothing.gguf")


def test_a_safetensors_repository_arrives_without_copies_in_other_formats(
    hub: StandInHub,
) -> None:
    hub.repositories["user/repo"] = Repository(SAFETENSORS)
    path = resolve("user/repo")
    wanted = [name for name in SAFETENSORS if not name.startswith(("con", "py", "onnx"))]
    wanted.append("config.json")
    assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} == set(wanted)
    assert all((path / name).read_bytes() == SAFETENSORS[name] for name in wanted)


def test_a_missing_shard_is_told_before_the_download(hub: StandInHub) -> None:
    files = {k: v for k, v in SAFETENSORS.items() if k != "model-2-of-2.safetensors"}
    hub.repositories["user/repo"] = Repository(files)
    with pytest.raises(ModelNotFound, match=r"model-2-of-2\.safetensors .* is missing"):
        resolve("user/repo")


def test_a_repository_without_a_model_is_told(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(ModelNotFound, match="no model that Strata reads"):
        resolve("user/repo")


def test_a_broken_download_goes_on_where_it_stopped(hub: StandInHub) -> None:
    data = content(20, 200_000)
    hub.repositories["user/repo"] = Repository({"m.Q8_0.gguf": data})
    hub.cut_after = 100_000
    with pytest.raises(DownloadError, match="answered 503"):
        resolve("user/repo")
    (partial,) = Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*.incomplete")
    kept = partial.stat().st_size
    assert 90_000 <= kept <= 100_000
    assert partial.read_bytes() == data[:kept]
    with pytest.raises(ModelNotFound):
        resolve("user/repo", offline=True)

    hub.down = False
    hub.asked.clear()
    seen: list[int] = []
    path = resolve("user/repo", progress=lambda name, done, total: seen.append(done))
    assert path.read_bytes() == data
    assert {asked.range for asked in hub.downloads()} == {f"bytes={kept}-"}
    assert seen[0] == kept
    assert seen[-1] == len(data)
    assert seen == sorted(seen)


def test_damaged_bytes_are_refused_and_deleted(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository({"m.Q8_0.gguf": content(21, 20_000)})
    hub.corrupt = True
    with pytest.raises(DownloadError, match="another checksum"):
        resolve("user/repo")
    assert blobs() == []
    hub.corrupt = False
    assert resolve("user/repo").read_bytes() == content(21, 20_000)


def test_a_cached_model_needs_no_hub(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    hub.repositories["user/tensors"] = Repository(SAFETENSORS)
    gguf, tensors = resolve("user/repo:Q8_0"), resolve("user/tensors")
    hub.asked.clear()
    assert resolve("user/repo:Q8_0") == gguf
    assert resolve("user/tensors", offline=True) == tensors
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # Offline the choice is among what is there.
    assert resolve("user/repo") == gguf
    with pytest.raises(ModelNotFound, match=r"there is Q8_0 \(5\.00 kB\)"):
        resolve("user/repo:Q4_K_M")
    with pytest.raises(ModelNotFound, match=r"strata pull user/other"):
        resolve("user/other")
    assert hub.asked == []


def test_refreshing_finds_a_newer_version(hub: StandInHub) -> None:
    repository = hub.repositories["user/repo"] = Repository({"m.Q8_0.gguf": content(30, 3000)})
    old = resolve("user/repo")
    repository.files, repository.commit = {"m.Q8_0.gguf": content(31, 3000)}, "d" * 40
    assert resolve("user/repo") == old
    assert resolve("user/repo", refresh=True).read_bytes() == content(31, 3000)
    assert resolve("user/repo").read_bytes() == content(31, 3000)
    assert resolve(f"user/repo@{'c0ffee0'}", offline=True) == old


def test_revisions(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS, revisions=("main", "v1"))
    path = resolve("user/repo:Q8_0@v1")
    assert resolve("user/repo@v1:Q8_0", offline=True) == path
    with pytest.raises(ModelNotFound, match="has no revision 'v2'"):
        resolve("user/repo@v2")


def test_the_token_is_sent_and_opens_gated_and_private_repositories(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["user/gated"] = Repository(GGUFS, gated=True)
    hub.repositories["user/private"] = Repository(GGUFS, private=True)
    with pytest.raises(DownloadError, match=r"user/gated is gated: .* HF_TOKEN"):
        resolve("user/gated")
    with pytest.raises(ModelNotFound, match="no repository user/private, or it is private"):
        resolve("user/private")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(DownloadError, match=r"refuses access to user/private \(401\).*HF_TOKEN"):
        resolve("user/private")
    assert all(asked.token == "wrong" for asked in hub.asked[-1:])
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.asked.clear()
    assert resolve("user/gated:Q8_0").read_bytes() == GGUFS["model.Q8_0.gguf"]
    assert resolve("user/private:Q8_0").is_file()
    elsewhere = [asked for asked in hub.asked if asked.path.startswith("/large/")]
    assert {asked.token for asked in hub.asked if asked not in elsewhere} == {hub.token}
    assert {asked.token for asked in elsewhere} == {None}


def test_a_missing_repository_is_told(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(ModelNotFound, match="no repository user/nothing"):
        resolve("user/nothing")


def test_no_connection_is_told(hub: StandInHub) -> None:
    hub.close()
    with pytest.raises(DownloadError, match="cannot reach the hub for user/repo") as told:
        resolve("user/repo:Q4_0")
    assert "`strata pull user/repo:Q4_0` downloads it" in str(told.value)


@pytest.mark.parametrize("name", ["../evil.gguf", "a/../../evil.gguf", "/evil.gguf", "a\\b.gguf"])
def test_unsafe_file_names_are_refused(hub: StandInHub, name: str) -> None:
    hub.repositories["user/repo"] = Repository({**GGUFS, name: content(40, 2000)})
    with pytest.raises(DownloadError, match="unsafe name"):
        resolve("user/repo")
    assert hub.downloads() == []


def test_a_full_disk_is_told_before_the_download(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"needs 3\.00 kB in .*, where 1\.00 kB are free"):
        resolve("user/repo")
    assert hub.downloads() == []


def test_a_disk_that_fills_up_is_told(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)

    def write(self: object, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_module._CheckedFile, "write", write)
    with pytest.raises(DownloadError, match="the disk is full"):
        resolve("user/repo")


def test_the_cache_lists_complete_models_under_names_that_resolve(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    hub.repositories["user/tensors"] = Repository(SAFETENSORS)
    paths = {resolve("user/repo:Q8_0"), resolve("user/repo:Q2_K"), resolve("user/tensors")}
    listed = list(cached_models())
    assert {str(model.reference) for model in listed} == {
        "user/repo:Q8_0",
        "user/repo:Q2_K",
        "user/tensors",
    }
    assert {resolve(str(model.reference), offline=True) for model in listed} == paths
    assert {model.size for model in listed if model.quant} == {5000, 2000}
    (tensors,) = (model for model in listed if model.quant is None)
    (tensors.path / "model-2-of-2.safetensors").unlink()
    assert len(list(cached_models())) == 2


def test_removing_one_model_leaves_the_others(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    gone, stays = resolve("user/repo:Q8_0"), resolve("user/repo:Q2_K")
    removal = plan_removal(HubRef("user/repo", quant="q8_0"))
    assert removal.freed == 5000
    remove(removal)
    assert not gone.exists()
    assert blobs() == [stays.resolve().name]
    assert resolve("user/repo:Q2_K", offline=True) == stays
    remove(plan_removal(HubRef("user/repo", quant="Q2_K")))
    assert not list(Path(constants.HF_HUB_CACHE).glob("models--*"))
    with pytest.raises(ModelNotFound, match="is not in the cache"):
        plan_removal(HubRef("user/repo"))


def test_removing_a_revision_keeps_blobs_that_another_one_uses(hub: StandInHub) -> None:
    shared = content(50, 3000)
    repository = hub.repositories["user/repo"] = Repository(
        {"a.Q8_0.gguf": shared, "b.Q4_0.gguf": content(51, 2000)}
    )
    resolve("user/repo:Q8_0")
    resolve("user/repo:Q4_0")
    repository.commit = "d" * 40
    new = resolve("user/repo:Q8_0", refresh=True)
    removal = plan_removal(HubRef("user/repo", revision="c0ffee0"))
    assert removal.freed == 2000
    remove(removal)
    assert new.read_bytes() == shared
    assert len(blobs()) == 1
    assert [str(model.reference) for model in cached_models()] == ["user/repo:Q8_0"]


def test_verifying_finds_a_damaged_file(hub: StandInHub) -> None:
    hub.repositories["user/repo"] = Repository(GGUFS)
    path = resolve("user/repo:Q8_0")
    verify_cached(HubRef("user/repo", quant="Q8_0"))
    blob = path.resolve()
    blob.write_bytes(bytes(5000))
    with pytest.raises(DownloadError, match=r"model\.Q8_0\.gguf of user/repo is damaged"):
        verify_cached(HubRef("user/repo", quant="Q8_0"))
    assert resolve("user/repo:Q8_0").read_bytes() == GGUFS["model.Q8_0.gguf"]
