"""Free memory and cgroup limits, read from trees like those of real systems."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.memory import limits
from strata.memory.limits import headrooms, memory_available, memory_total

V2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "33 25 0:30 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n"


def system(root: Path, *, mounts: str, cgroup: str, files: dict[str, str]) -> Path:
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:   10000 kB\nHugePages: none\n"
    )
    (proc / "status").write_text("Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  100 kB\n")
    (proc / "mountinfo").write_text(mounts)
    (proc / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_the_machine_decides(tmp_path: Path) -> None:
    files = {"a/memory.max": "max\n", "a/memory.high": "max\n", "a/memory.current": "5000\n"}
    root = system(tmp_path, mounts=V2, cgroup="0::/a\n", files=files)
    assert memory_total(root) == 16000 * 1024
    # What this process holds would be free for the one in its place.
    assert memory_available(root) == 10100 * 1024
    assert [room.where for room in headrooms(root)] == ["machine"]


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_the_tightest_limit_up_the_tree_holds(tmp_path: Path, name: str) -> None:
    files = {
        "memory.current": "9000000\n",
        f"a/{name}": "4000000\n",
        "a/memory.current": "3500000\n",
        "a/memory.stat": "anon 100\ninactive_file 250000\nactive_file 7\n",
        "a/b/memory.max": "5000000\n",
        "a/b/memory.current": "1000\n",
    }
    root = system(tmp_path, mounts=V2, cgroup="0::/a/b\n", files=files)
    # 500000 are left below 4000000, and the cache that nobody uses can go.
    assert memory_available(root) == 750_000 + 100 * 1024
    assert memory_total(root) == 4_000_000
    assert len(headrooms(root)) == 3


def test_version_1(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "1\n",
        "memory/a/memory.limit_in_bytes": "2000000\n",
        "memory/a/memory.usage_in_bytes": "1500000\n",
        "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 200000\n",
    }
    text = "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n"
    root = system(tmp_path, mounts=V1, cgroup=text, files=files)
    assert memory_available(root) == 700_000 + 100 * 1024


def test_a_container_sees_its_part_of_the_tree_as_the_root(tmp_path: Path) -> None:
    mounts = V2.replace(" / /sys", " /docker/7f /sys")
    files = {"memory.max": "3000000\n", "memory.current": "1000000\n"}
    root = system(tmp_path, mounts=mounts, cgroup="0::/docker/7f\n", files=files)
    assert memory_available(root) == 2_000_000 + 100 * 1024


def test_a_cgroup_whose_directory_is_not_shown_falls_back_to_the_mount(tmp_path: Path) -> None:
    files = {"memory.max": "3000000\n", "memory.current": "1000000\n"}
    root = system(tmp_path, mounts=V2, cgroup="0::/elsewhere/deep\n", files=files)
    assert memory_available(root) == 2_000_000 + 100 * 1024


def test_what_is_held_never_counts_beyond_the_limit(tmp_path: Path) -> None:
    files = {"memory.max": "50000\n", "memory.current": "40000\n"}
    root = system(tmp_path, mounts=V2, cgroup="0::/\n", files=files)
    assert memory_available(root) == 50_000


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert (memory_total(tmp_path), memory_available(tmp_path)) == (0, 0)
    assert headrooms(tmp_path) == []


def test_without_proc_the_c_library_tells_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    told = memory_total()
    monkeypatch.setattr(limits, "text_of", lambda path: "")
    monkeypatch.setattr(limits, "cgroup_directories", lambda name, root: [])
    (room,) = headrooms()
    assert 0 < room.free <= room.limit
    assert room.limit >= told


def test_this_machine() -> None:
    assert 0 < memory_available() <= memory_total()
