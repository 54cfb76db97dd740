"""Flags of other programs, and values from the environment and from config.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from strata.cli import main, verbs
from strata.cli.foreign_flags import translated
from strata.cli.options import SIZE
from strata.cli.settings import config_path, defaults

DECLARED = {
    *("-m", "--memory", "-n", "--max-tokens", "--temperature", "-c", "--context", "-p", "-t"),
    *("--kv-type", "--seed", "--system"),
}


@pytest.mark.parametrize(
    ("given", "expected", "without"),
    [
        ("-m m.gguf -p hi -n -1 --temp 0.5", "m.gguf -p hi -n -1 --temperature 0.5", []),
        ("-m 4GB m.gguf hi", "-m 4GB m.gguf hi", []),
        ("-m 7b/m.gguf -m 4GB", "7b/m.gguf -m 4GB", []),
        ("-hf user/repo:Q4_0 -c 512", "user/repo:Q4_0 -c 512", []),
        ("m.gguf -ngl 99 -fa on hi --mlock", "m.gguf hi", ["-ngl", "-fa", "--mlock"]),
        ("m.gguf -fa hi", "m.gguf hi", ["-fa"]),
        ("m.gguf --n-gpu-layers=99 hi", "m.gguf hi", ["--n-gpu-layers"]),
        ("m.gguf --ctx-size=512 -ctk q8_0", "m.gguf --context=512 --kv-type q8_0", []),
        ("m.gguf -- -ngl 99", "m.gguf -- -ngl 99", []),
        ("m.gguf --nonsense -p -ngl", "m.gguf --nonsense -p -ngl", []),
    ],
)
def test_flags_of_other_programs(given: str, expected: str, without: list[str]) -> None:
    ours, left_out = translated(given.split(), DECLARED)
    assert ours == expected.split()
    assert list(left_out) == without
    assert all(left_out.values())


class Tried:
    """A verb whose options are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.seen: dict[str, Any] = {}
        self._capsys = capsys

        @click.command("try")
        @click.option("-n", "--max-tokens", type=int)
        @click.option("--memory", type=SIZE)
        @click.option("--stop", multiple=True)
        @click.option("--quiet", is_flag=True)
        def command(**values: Any) -> None:
            self.seen = {name: value for name, value in values.items() if value}

        monkeypatch.setitem(verbs.VERBS, "try", ("tried", "Try."))
        monkeypatch.setitem(sys.modules, "tried", SimpleNamespace(command=command))

    def __call__(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        self.seen = {}
        code = main(["try", *arguments])
        return code, self.seen, self._capsys.readouterr().err


@pytest.fixture
def tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tried:
    monkeypatch.setenv("STRATA_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").touch()
    return Tried(monkeypatch, capsys)


def test_the_nearest_wins(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    def value() -> object:
        return tried()[1].get("max_tokens")

    file = config_path()
    assert value() is None
    file.write_text("max_tokens = 1\n")
    assert value() == 1
    file.write_text("max_tokens = 1\n[try]\nmax_tokens = 2\n")
    assert value() == 2
    monkeypatch.setenv("STRATA_MAX_TOKENS", "3")
    assert value() == 3
    monkeypatch.setenv("STRATA_TRY_MAX_TOKENS", "4")
    assert value() == 4
    assert tried("-n", "5")[1]["max_tokens"] == 5


def test_every_kind_of_value(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    config_path().write_text('memory = "4GB"\nquiet = true\n[try]\nstop = ["a", "b"]\n')
    assert tried()[1] == {"memory": 4 * 10**9, "quiet": True, "stop": ("a", "b")}
    config_path().write_text('memory = "4GB"\nquiet = true\n[try]\nmax-tokens = 3\n')
    assert tried()[1] == {"memory": 4 * 10**9, "quiet": True, "max_tokens": 3}
    config_path().write_text('memory = "4GB"\nquiet = true\n')
    monkeypatch.setenv("STRATA_STOP", "c")
    monkeypatch.setenv("STRATA_QUIET", "0")
    assert tried()[1] == {"memory": 4 * 10**9, "stop": ("c",)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('memory = "four"', "four"),
        ('memory = "four"', "memory in "),
        ("memori = 3", "sets memori, but there is no such option; did you mean memory?"),
        ("[tri]\nquiet = true", "sets [tri], but there is no such command; did you mean [try]?"),
        ("[try]\nquite = true", "did you mean quiet?"),
        ("memory =", "is not TOML"),
        ("memory = " + "1" * 5000, "is not TOML"),
        ("max_tokens = [1]", "max_tokens is one text or number"),
        ("memory = 1979-05-27", "memory is one text or number"),
        ("stop = [{ a = 1 }]", "stop is texts or numbers in a list"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tried: Tried, text: str, says: str) -> None:
    config_path().write_text(text)
    code, _, err = tried()
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


def test_what_is_wrong_in_the_environment_is_said(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_MEMORY", "four")
    code, _, err = tried()
    assert code == 2
    assert "(from STRATA_MEMORY)" in err


def test_other_verbs_may_be_set_up_too(tried: Tried) -> None:
    config_path().write_text("temperature = 0.5\n[serve]\nport = 9000\n")
    assert tried()[:2] == (0, {})


def test_every_option_of_every_verb_is_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").touch()
    context = click.Context(verbs.root)
    for verb in verbs.root.list_commands(context):
        command = verbs.root.get_command(context, verb)
        assert command is not None
        options = {
            opt.removeprefix("--"): param
            for param in command.params
            if isinstance(param, click.Option)
            for opt in param.opts
            if opt.startswith("--")
        }
        with monkeypatch.context() as environment:
            for name in options:
                variable = f"STRATA_{verb}_{name}".upper().replace("-", "_")
                environment.setenv(variable, f"of {name}")
            values, _ = defaults(verb, command.params, dict)
        for name, option in options.items():
            value = values[option.name or name]
            said = value[0] if option.multiple else value
            assert said in {f"of {each}" for each, of in options.items() if of is option}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_STRATA_COMPLETE" in capsys.readouterr().out


def test_verbs_and_models_are_completed() -> None:
    for words, index, found in (("strata ru", 1, "run"), ("strata run smol", 2, "smollm2")):
        done = subprocess.run(
            [sys.executable, "-m", "strata"],
            env={
                **os.environ,
                "_STRATA_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(index),
            },
            capture_output=True,
            text=True,
        )
        assert f"plain,{found}" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_tokens = inf", "max_tokens is a number that is finite"),
        ("max_tokens = nan", "max_tokens is a number that is finite"),
        (f"max_tokens = '{'x' * 5000}'", "max_tokens has 4096 characters at most"),
        (f"max_tokens = '{'x' * 4000}'", "is not a valid integer"),
    ],
)
def test_values_that_no_option_has_are_told_in_a_short_line(
    tried: Tried, text: str, said: str
) -> None:
    """An infinite number ended in an OverflowError; a long text was quoted whole."""
    config_path().write_text(text)
    code, _, told = tried()
    assert code == 2
    assert said in told
    assert len(told.splitlines()) == 1
    assert len(told) < 2200


def test_a_long_text_for_the_model_is_a_setting(tried: Tried) -> None:
    config_path().write_text(f"stop = ['{'x' * 5000}']")
    assert tried()[:2] == (0, {"stop": ("x" * 5000,)})
