"""The source archive has the sources, and nothing that was built in the folder."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_what_was_built_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has a little of everything: built objects lie in folders named csrc, too."""
    build = pytest.importorskip("scikit_build_core.build")
    for name in (".gitignore", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    package = tmp_path / "src" / "strata"
    shutil.copytree(ROOT / "src" / "strata" / "server" / "web", package / "server" / "web")
    shutil.copy(ROOT / "src" / "strata" / "__init__.py", package)
    for made in ("csrc/a.cpp", "build/dev/CMakeFiles/x.dir/csrc/a.cpp.o", "tests/test_a.py"):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("")
    (package / "_native.abi3.so").write_text("")
    monkeypatch.chdir(tmp_path)
    name = build.build_sdist(str(tmp_path / "dist"))
    with tarfile.open(tmp_path / "dist" / name) as archive:
        found = {member.partition("/")[2] for member in archive.getnames()}
    assert {"csrc/a.cpp", "CMakeLists.txt", "src/strata/server/web/index.html"} <= found
    assert {f for f in found if f.startswith(("build", "tests")) or f.endswith((".o", ".so"))} == (
        set()
    )
