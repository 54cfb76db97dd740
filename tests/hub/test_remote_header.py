"""Headers of models on the hub, read by ranges over real HTTP from the stand-in hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from strata.cli import main
from strata.formats import FormatError, open_model
from strata.formats.errors import ClosedError, DuplicateTensorError
from strata.formats.gguf_writer import write_gguf
from strata.formats.safetensors_writer import write_safetensors
from strata.formats.writing import TensorSource
from strata.hub.cache import HubRef
from strata.hub.downloads import DownloadError, ModelNotFound
from strata.hub.remote import remote_header
from strata.models import build_model
from strata.synth import SHAPES
from strata.synth.outline import config_json, gguf_metadata, gguf_tensors, huggingface_tensors
from strata.synth.pools import Pools
from support.stand_in_hub import Repository, StandInHub

MACHINES = Path(__file__).parents[1] / "support" / "machines"
SHAPE = SHAPES["tiny-llama"]


def sources(tensors: list, pools: Pools) -> list[TensorSource]:  # type: ignore[type-arg]
    return [TensorSource(t.name, t.shape, t.type, lambda t=t: pools.chunks(t)) for t in tensors]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-Q8_0.gguf"
    tensors = sources(gguf_tensors(SHAPE, "Q8_0"), Pools(0))
    write_gguf(path, gguf_metadata(SHAPE, "Q8_0"), tensors)
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huggingface")
    tensors = sources(huggingface_tensors(SHAPE), Pools(0))
    half = len(tensors) // 2
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, part in zip(names, (tensors[:half], tensors[half:]), strict=True):
        write_safetensors(path / name, part)
    weight_map = {t.name: names[i >= half] for i, t in enumerate(tensors)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(config_json(SHAPE)))
    return path


def files_of(path: Path) -> dict[str, bytes]:
    return {child.name: child.read_bytes() for child in path.iterdir()}


def asked_bytes(hub: StandInHub) -> int:
    total = 0
    for asked in hub.downloads():
        # A redirect carries no bytes; what it leads to is asked for once more.
        if asked.range is not None and asked.path.startswith("/large/"):
            first, last = asked.range.removeprefix("bytes=").split("-")
            total += int(last) + 1 - int(first)
    return total


def test_a_gguf_header_is_read_without_its_weights(hub: StandInHub, gguf: Path) -> None:
    content = gguf.read_bytes()
    hub.repositories["user/repo"] = Repository({"a-Q8_0.gguf": content, "b-Q4_0.gguf": b"x" * 99})
    header = remote_header(HubRef("user/repo", "Q8_0"))
    with open_model(gguf) as local:
        assert dict(header.metadata) == dict(local.metadata)
        here, there = local.tensors.values(), header.tensors.values()
        assert [(t.name, t.shape, t.type, t.offset) for t in there] == [
            (t.name, t.shape, t.type, t.offset) for t in here
        ]
        assert (header.file_bytes, header.nbytes) == (local.file_bytes, local.nbytes)
        assert build_model(header) == build_model(local)
    assert 0 < asked_bytes(hub) <= 1 << 18 < len(content)
    assert not Path(constants.HF_HUB_CACHE).exists()
    with pytest.raises(ClosedError, match="only the header"):
        header.read("token_embd.weight")


def test_a_directory_of_shards(hub: StandInHub, directory: Path) -> None:
    hub.repositories["user/repo"] = Repository(files_of(directory))
    header = remote_header(HubRef("user/repo"))
    with open_model(directory) as local:
        assert build_model(header) == build_model(local)
        assert header.file_bytes == local.file_bytes
    assert asked_bytes(hub) < 20_000
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_split_gguf(hub: StandInHub, tmp_path: Path) -> None:
    tensors = sources(gguf_tensors(SHAPE, "Q8_0"), Pools(0))
    files = {}
    for i, part in enumerate((tensors[:9], tensors[9:])):
        metadata = {"split.no": i, "split.count": 2}
        path = tmp_path / f"m-0000{i + 1}-of-00002.gguf"
        write_gguf(path, {**(gguf_metadata(SHAPE, "Q8_0") if i == 0 else {}), **metadata}, part)
        files[path.name] = path.read_bytes()
    hub.repositories["user/repo"] = Repository(files)
    assert len(remote_header(HubRef("user/repo")).tensors) == len(tensors)
    hub.repositories["user/twice"] = Repository(
        dict.fromkeys(files, files["m-00001-of-00002.gguf"])
    )
    with pytest.raises(DuplicateTensorError, match=r"is also in"):
        remote_header(HubRef("user/twice"))


def test_a_server_without_ranges_is_understood(hub: StandInHub, gguf: Path) -> None:
    hub.no_ranges = True
    hub.repositories["user/repo"] = Repository({"a.gguf": gguf.read_bytes()})
    assert remote_header(HubRef("user/repo")).tensors


@pytest.mark.parametrize("token", [None, "a-token"])
def test_a_private_repository_needs_a_token(
    hub: StandInHub, gguf: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.repositories["user/repo"] = Repository({"a.gguf": gguf.read_bytes()}, private=True)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
        assert remote_header(HubRef("user/repo")).tensors
        # The token stays with the hub and is not carried to where large files lie.
        assert {a.token for a in hub.asked if a.path.startswith("/large/")} == {None}
        return
    with pytest.raises(ModelNotFound, match="no repository user/repo, or it is private"):
        remote_header(HubRef("user/repo"))


def test_faults_are_one_clear_error(hub: StandInHub, gguf: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no repository user/none"):
        remote_header(HubRef("user/none"))
    hub.repositories["user/repo"] = Repository({"a.gguf": b"no header at all" * 100})
    with pytest.raises(FormatError, match="not a GGUF file"):
        remote_header(HubRef("user/repo"))
    hub.repositories["user/gated"] = Repository({"a.gguf": gguf.read_bytes()}, gated=True)
    with pytest.raises(DownloadError, match="is gated"):
        remote_header(HubRef("user/gated"))
    hub.repositories["user/repo"] = Repository({"a.gguf": gguf.read_bytes()})
    hub.down = True
    with pytest.raises(DownloadError, match="answered 503"):
        remote_header(HubRef("user/repo"))


def test_a_config_of_absurd_size_is_not_fetched(hub: StandInHub, directory: Path) -> None:
    files = files_of(directory) | {"config.json": b" " * (65 << 20)}
    hub.repositories["user/repo"] = Repository(files)
    with pytest.raises(DownloadError, match="too large"):
        remote_header(HubRef("user/repo"))


@pytest.mark.parametrize("name", ["user/repo:Q8_0", "hf.co/user/repo"])
def test_a_plan_for_a_model_that_is_not_here(
    hub: StandInHub, gguf: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    hub.repositories["user/repo"] = Repository({"a-Q8_0.gguf": gguf.read_bytes()})
    machine = ["--machine", str(MACHINES / "laptop.json")]
    assert main(["plan", name, *machine, "--memory", "200MB", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["plan"]["budget"] == 200_000_000
    assert printed["plan"]["predicted"]["decode_tok_s"] > 0
    assert main(["plan", name, *machine, "--offline"]) == 1
    assert "not on this machine" in capsys.readouterr().err
