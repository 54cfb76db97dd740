"""README and docs/ say what is there: links, commands, options, endpoints, errors, results."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import MagicMock

import click
import pytest

import strata
from strata.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
LINKED = [*PAGES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "SECURITY"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"(?:^|[\s(])strata +(\w+)([^|;&<>#)\n]*)")
_OPTION = re.compile(r"(?<!\S)(--?[A-Za-z][\w-]*)(?=[\s=]|$)")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _anchors(path: Path) -> set[str]:
    """The anchors of headings, as GitHub and mkdocs make them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h.lower()).strip()) for h in headings}


@pytest.mark.parametrize("page", LINKED, ids=_name)
def test_links_resolve(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} is not there"
        assert not anchor or anchor in _anchors(found), f"{target}: there is no such heading"


def test_every_page_can_be_found() -> None:
    """From the site's menu and from the README."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in DOCS:
        assert f": {page.name}\n" in menu
        assert page.name == "index.md" or f"(docs/{page.name})" in readme


@cache
def _options(verb: str) -> frozenset[str]:
    command = importlib.import_module(VERBS[verb][0]).command
    assert isinstance(command, click.Command)
    of_params = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    return frozenset({*of_params, "--help", "-h"})


def _commands(text: str) -> list[tuple[str, str]]:
    """Verbs that are named in code, each with what stands behind it."""
    shells = [
        body.replace("\\\n", " ")
        for kind, body in _FENCE.findall(text)
        if kind in ("sh", "console", "")
    ]
    spans = _SPAN.findall(_FENCE.sub("", text))
    return [found for code in (*shells, *spans) for found in _COMMAND.findall(code)]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for verb, rest in _commands(text):
        if verb == "VERB":
            continue
        assert verb in VERBS, f"there is no `strata {verb}`"
        # What is quoted is a prompt or a schema.
        for option in _OPTION.findall(re.sub(r"'[^']*'|\"[^\"]*\"", "''", rest)):
            assert option in _options(verb), f"`strata {verb}` has no {option}"
    every = frozenset().union(*map(_options, VERBS)) | {"--version"}
    for span in _SPAN.findall(_FENCE.sub("", text)):
        if match := re.match(r"(--[a-z][\w-]*)\b", span):
            assert match[1] in every, f"no verb has {match[1]}"


def test_every_verb_is_documented() -> None:
    named = {verb for page in DOCS for verb, _ in _commands(page.read_text(encoding="utf-8"))}
    assert named >= set(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_examples_in_python_can_be_read(page: Path) -> None:
    for kind, body in _FENCE.findall(page.read_text(encoding="utf-8")):
        if kind != "python":
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module == "strata":
                assert {alias.name for alias in node.names} <= set(strata.__all__)


def test_endpoints_are_those_of_the_server() -> None:
    pytest.importorskip("fastapi")
    from strata.server import anthropic, kv, llama, memory, ollama, openai, plain, vertex
    from strata.server.fleet import names
    from strata.server.settings import Settings

    service = MagicMock(settings=Settings())
    service.llm.path = ROOT / "tests" / "goldens" / "trained-mixture.gguf"
    protocols = (openai, anthropic, ollama, llama, plain, memory, kv, vertex)
    routes = [route for protocol in protocols for route in protocol.router(service).routes]
    there = {route.path.replace(":path", "") for route in routes}
    public = {route.path.replace(":path", "") for route in routes if route.include_in_schema}
    several = {route.path.replace(":path", "") for route in names.routes(MagicMock())}
    there, public = there | several, public | several - {"/models"}

    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    told = set(re.findall(r"(/[a-z0-9/_{}-]+)", " ".join(_SPAN.findall(rows))))
    assert told <= there
    assert public <= told


def test_errors_are_in_the_words_of_the_program() -> None:
    """Headings of the page on troubleshooting quote parts of messages."""
    words = "\0".join(
        node.value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        q for line in text.splitlines() if line.startswith("### ") for q in _SPAN.findall(line)
    ]
    assert len(quoted) > 25
    # One is a command; one names a file that is put in.
    known = {"pip install strata", "as ~/.config/strata/config.toml has it"}
    assert {q for q in quoted if q not in known and q not in words} == set()


def test_the_lab_book_names_what_is_there() -> None:
    text = (ROOT / "docs" / "lab-book.md").read_text(encoding="utf-8")
    results = {path.name for path in (ROOT / "bench" / "results").glob("*.json")}
    rows = set(re.findall(r"^\| `(\w+\.json)`", text, re.MULTILINE))
    assert not results - rows, "docs/lab-book.md needs a row for each of these results"
    assert not rows - results, "docs/lab-book.md has rows for results that are not there"
    for page in PAGES:
        for name in re.findall(r"\bbench/[\w/]+\.(?:py|json)", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file() or name == "bench/NAME.py", name


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'strata-llm[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ledger" in (tmp_path / "ARCHITECTURE" / "index.html").read_text(encoding="utf-8")
