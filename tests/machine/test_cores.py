"""Cores that a process may use: affinity and quotas, read from trees like those of real systems."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from strata import _native
from strata.cores import usable_cores

V2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "33 25 0:30 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def system(root: Path, mounts: str, cgroup: str, files: dict[str, str]) -> Path:
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(mounts)
    (proc / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 16),
        ({"a/b": "max 100000"}, 16),
        ({"a/b": "400000 100000"}, 4),
        ({"a/b": "150000 100000"}, 2),
        ({"a/b": "1000 100000"}, 1),
        # The tightest one up the tree, wherever it is.
        ({"a/b": "400000 100000", "a": "200000 100000"}, 2),
        ({"a/b": "100000 100000", "a": "800000 100000"}, 1),
        ({"a/b": "3200000 100000"}, 16),
        # What no kernel writes is no limit.
        ({"a/b": ""}, 16),
        ({"a/b": "200000 0"}, 16),
        ({"a/b": "two 100000"}, 16),
    ],
)
def test_quotas(tmp_path: Path, quotas: dict[str, str], cores: int) -> None:
    files = {f"{group}/cpu.max": text + "\n" for group, text in quotas.items()}
    files["a/b/cgroup.procs"] = ""
    assert usable_cores(system(tmp_path, V2, "0::/a/b\n", files)) == cores


@pytest.mark.usefixtures("sixteen_cores")
def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    root = system(tmp_path, V2, "0::/\n", {"cpu.max": "300000 100000\n"})
    assert usable_cores(root) == 3


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 16), ("250000", 3)])
def test_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    files = {"cpu/a/cpu.cfs_quota_us": f"{quota}\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
    assert usable_cores(system(tmp_path, V1, "4:memory:/x\n5:cpu,cpuacct:/a\n", files)) == cores


def test_affinity_below_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system(tmp_path, V2, "0::/a\n", {"a/cpu.max": "800000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 7, 9}, raising=False)
    assert usable_cores(root) == 3


def test_systems_without_affinity_or_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUID is x86-64's")
def test_instruction_sets_are_those_that_the_system_names() -> None:
    """Native code asks the processor itself; Linux lists what it found and saves registers of."""
    listed = Path("/proc/cpuinfo")
    if not listed.exists():
        pytest.skip("this system has no /proc/cpuinfo")
    lines = listed.read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    avx2 = {"avx2", "fma", "f16c"}
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
    avx512 |= {"avx512_bf16", "avx512vbmi", "gfni"}
    wanted = {"scalar": set(), "avx2": avx2, "avx512": avx512}
    assert set(_native.available_isas()) == {k for k, v in wanted.items() if v <= flags}
