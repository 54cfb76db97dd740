"""How Strata is given to people: its name, what a source distribution has, files that name both."""

from __future__ import annotations

import importlib
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def project() -> Any:
    """What pyproject.toml says of the package."""
    tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_nothing_tells_people_to_install_another_projects_package() -> None:
    """What PyPI has as `strata` is not ours."""
    wrong = re.compile(r"(pip|pipx|uv|uvx)\b[^\n]*?(?<![\w/.-])strata(\[|\s*$|['\"])", re.MULTILINE)
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.html"),
        *(ROOT / "deploy").iterdir(),
        ROOT / "Dockerfile",
        ROOT / ".ci" / "run",
    ]
    told = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for match in wrong.finditer(path.read_text(encoding="utf-8"))
    }
    assert told == set()


def test_what_is_run_as_a_program_is_asked_for() -> None:
    """Environments that uv makes have no pip by themselves."""
    assert '"pip", "download"' in (ROOT / "src/strata/hub/builtin.py").read_text(encoding="utf-8")
    assert "pip" in project()["dependencies"]


def test_a_server_without_grammars_can_be_asked_for() -> None:
    """`http` is `server` without llguidance alone, which has no wheel for musl."""
    extras = project()["optional-dependencies"]
    assert [each for each in extras["server"] if "llguidance" not in each] == ["strata-llm[http]"]
    assert not [each for each in extras["http"] if "llguidance" in each]


@pytest.mark.slow
def test_a_source_distribution_has_what_building_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("scikit_build_core.build")
    monkeypatch.chdir(ROOT)
    name = build.build_sdist(str(tmp_path))
    assert name.startswith("strata_llm-")
    with tarfile.open(tmp_path / name) as archive:
        members = {member.partition("/")[2] for member in archive.getnames()}
    assert {"pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md"} <= members
    sources = [*(ROOT / "csrc").rglob("*.*"), *(ROOT / "src").rglob("*.py")]
    needed = {p.relative_to(ROOT).as_posix() for p in sources if p.is_file()}
    assert needed <= members
    others = {member.partition("/")[0] for member in members}
    assert not others & {"tests", "bench", "tools", "docs", ".ci", "build"}
    assert not [member for member in members if member.endswith((".so", ".pyc"))]
