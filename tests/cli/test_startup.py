"""The help answers at once, because it imports next to nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import click
import pytest

from strata import __version__
from strata.cli import main, verbs

HEAVY = ("numpy", "rich", "huggingface_hub", "jinja2", "tokenizers")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nothing"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    program = (
        "import json, sys\nfrom strata.cli import main\n"
        f"main({arguments!r})\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize("verb", ["pull", "list", "show", "rm"])
def test_the_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    test_nothing_heavy_is_imported([verb, "--help"])


def test_the_help_imports_little_at_all() -> None:
    """So it answers at once: beside click and what that brings, a few modules of our own."""
    program = (
        "import sys; before = set(sys.modules)\nfrom strata.cli import main\n"
        "main(['--help'])\nprint(len(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stderr.splitlines()[-1]) < 130


def test_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(verbs.VERBS)
    assert all(line.endswith(".") for line in listed)


@pytest.mark.parametrize("verb", list(verbs.VERBS))
def test_every_verb_has_its_command(verb: str) -> None:
    module = verbs.VERBS[verb][0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there")
    command = verbs.root.get_command(click.Context(verbs.root), verb)
    assert command is not None
    assert command.name == verb


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"strata {__version__}\n"
