"""The machine probe: measures once, in seconds, and remembers under a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from strata import __version__
from strata.backends.cpu.host import choose_isa
from strata.cores import usable_cores
from strata.errors import UsageError
from strata.hub.downloads import strata_home
from strata.machine.doubts import Doubts, alike
from strata.machine.machine import Machine
from strata.machine.other_work import OtherWork
from strata.machine.probe_compute import attention, caches, compute_probe, cpu_name
from strata.machine.probe_disk import probe_disk
from strata.machine.values import ValueFileError, from_json, to_json
from strata.memory.limits import memory_available, memory_free, memory_total

READ_SECONDS = 0.6
KERNEL_SECONDS = 2.4
DISK_SECONDS = 4.0

LEAST_BYTES = 66_000_000
"""Of memory that is free before a process that measures begins: 57 MB of its own were seen, 38 of
them before it measures anything, and pages of files, which give way: in groups of 113 to 128 MB at
most 103 MB were used, with 48 of the process that waits."""

MOST_KNOWN = 16
"""Disks, and builds of Strata, that are remembered; the one measured longest ago is forgotten."""

Progress = Callable[[str], None]
"""Told what is measured next."""


def probe(
    path: Path,
    *,
    refresh: bool = False,
    noisy_again: bool = False,
    progress: Progress | None = None,
) -> tuple[Machine, bool]:
    """This machine with the disk under ``path`` (a file or directory), and whether it was known.

    What was measured before is used again while the processor, the cores this process may use, the
    instruction set, the kernel, Strata's version and the disk are the same, unless ``refresh``, or
    ``noisy_again`` and the machine was busy then. It is measured again, too, when runs were not as
    predicted (``note_run``). What is measured on a busy machine replaces nothing quieter.
    Memory limits are always looked at anew. Raises DiskProbeError if the disk cannot be measured.
    """
    existing = path
    while not existing.exists():
        existing = existing.parent
    fingerprint = _fingerprint(existing)
    before = None if refresh else _remembered(fingerprint)
    doubts = Doubts() if before is None else _doubts(fingerprint)
    if before is not None and not (noisy_again and before.noisy) and not doubts.enough:
        machine, known = before, True
    else:
        progress = progress or (lambda what: None)
        if doubts.enough:
            progress("all again, since runs were not as predicted")
        machine, known = _measure(existing, progress), False
        after = Doubts()
        if before is not None and doubts.enough:
            after = doubts.measured(alike(before, machine))
        if before is not None and machine.noisy and _unrest(before) < _unrest(machine):
            machine = before
        _remember(fingerprint, machine, after)
    return replace(machine, memory_total=memory_total(), memory_available=memory_available()), known


def known_machine(path: Path) -> Machine | None:
    """What was measured of the machine with the disk under ``path``; None if nothing was."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    machine = _remembered(_fingerprint(existing))
    if machine is None:
        return None
    return replace(machine, memory_total=memory_total(), memory_available=memory_available())


def note_run(path: Path, ratio: float) -> None:
    """A model at ``path`` ran ``ratio`` times as fast as was predicted of this machine."""
    fingerprint = _fingerprint(path)
    machine = _remembered(fingerprint)
    if machine is None:
        return
    before = _doubts(fingerprint)
    after = before.after(ratio)
    if after != before:
        _remember(fingerprint, machine, after)


def is_doubted(path: Path) -> bool:
    """Whether runs spoke so much against what is known that it is to be measured again."""
    return _doubts(_fingerprint(path)).enough


def keep_doubted(path: Path) -> None:
    """Measuring again what runs spoke against did not work: more of them have to before it is
    tried again."""
    fingerprint = _fingerprint(path)
    machine = _remembered(fingerprint)
    if machine is not None:
        _remember(fingerprint, machine, _doubts(fingerprint).measured(alike=False))


def load_machine(path: Path) -> Machine:
    """A Machine from the JSON that ``strata probe --json`` printed; UsageError if it is none."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}; `strata probe --json` writes machine files")
    try:
        return from_json(Machine, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, RecursionError, ValueFileError) as error:
        raise UsageError(
            f"{path} is not a machine file of `strata probe --json`: {error}"
        ) from None


def _measure(path: Path, progress: Progress) -> Machine:
    isa, cores = choose_isa(), usable_cores()
    known_caches = caches()
    largest = max((c.nbytes for c in known_caches), default=0)
    progress("attention")
    others = OtherWork()
    attention_rate, overhead = attention(cores, isa, memory_free())
    with compute_probe(cores, isa, largest, memory_free()) as compute:
        progress("memory")
        memory_read = compute.memory_read(READ_SECONDS)
        progress("kernels")
        kernels = compute.kernels(KERNEL_SECONDS)
        reads = [memory_read[-1].bytes_s, compute.memory_read(READ_SECONDS)[-1].bytes_s]
    busy = others.share()
    progress("disk")
    disk, latency = probe_disk(path, DISK_SECONDS)
    return Machine(
        cpu=cpu_name(),
        cores=cores,
        isa=isa,
        caches=known_caches,
        memory_total=memory_total(),
        memory_available=memory_available(),
        memory_read=memory_read,
        kernels=kernels,
        attention=attention_rate,
        step_overhead_s=overhead,
        disk=disk,
        read_latency_s=latency,
        spread=1 - min(reads) / max(reads),
        busy=busy,
    )


def _unrest(machine: Machine) -> float:
    return machine.spread + machine.busy


def _fingerprint(path: Path) -> str:
    facts = (
        cpu_name(),
        str(usable_cores()),
        choose_isa(),
        platform.platform(),
        __version__,
        str(path.stat().st_dev),
        # Rates of kernels belong to one build of them.
        _native_stamp(),
    )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _native_stamp() -> str:
    import strata._native as _native

    stat = os.stat(_native.__file__)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _cache_file(fingerprint: str) -> Path:
    # Of its own for each: of two installations none has the other measure again.
    return strata_home() / "machines" / f"{fingerprint[:16]}.json"


def _remembered(fingerprint: str) -> Machine | None:
    try:
        data = json.loads(_cache_file(fingerprint).read_text(encoding="utf-8"))
        if data["fingerprint"] == fingerprint:
            return from_json(Machine, data["machine"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValueFileError):
        pass
    return None


def _doubts(fingerprint: str) -> Doubts:
    try:
        data = json.loads(_cache_file(fingerprint).read_text(encoding="utf-8"))
        return Doubts.read(data["doubts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Doubts()


def _remember(fingerprint: str, machine: Machine, doubts: Doubts) -> None:
    cache = _cache_file(fingerprint)
    # Where nothing can be kept, each start measures again: slow, still right.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        scratch = cache.with_suffix(f".{os.getpid()}")
        data = {
            "fingerprint": fingerprint,
            "machine": to_json(machine),
            "doubts": doubts.to_json(),
        }
        scratch.write_text(json.dumps(data), encoding="utf-8")
        os.replace(scratch, cache)
        known = sorted(cache.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in known[:-MOST_KNOWN]:
            old.unlink()
