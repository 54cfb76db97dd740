"""However a command ends: its exit code, one line, and JSON that stays alone on standard output."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import click
import pytest

from strata.cli import main, verbs
from strata.cli.console import print_json, print_table, remark
from strata.cli.failures import Terminated
from strata.cli.options import json_option
from strata.errors import StrataError, UsageError


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a verb whose body is the given function."""

    def runner(body: Callable[[], object], *arguments: str) -> tuple[int, str, str]:
        @click.command("try")
        @json_option
        def command(as_json: bool) -> None:
            body()

        monkeypatch.setitem(verbs.VERBS, "try", ("tried", "Try."))
        monkeypatch.setitem(sys.modules, "tried", SimpleNamespace(command=command))
        code = main(["try", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return runner


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StrataError("it failed:\n  do this"), 1, "it failed: do this"),
        (UsageError("not like that"), 2, "not like that"),
        (click.UsageError("not so"), 2, "not so (see strata try --help)"),
        (click.ClickException("no"), 1, "no"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (MemoryError(), 1, "this machine has not enough free memory for that"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 1, "/a/b: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 1, "/a: Permission denied"),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "unexpected ZeroDivisionError: by zero (set STRATA_DEBUG=1 for the traceback)",
        ),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_failure_is_one_line(
    run: Callable[..., tuple[int, str, str]],
    error: BaseException,
    code: int,
    message: str,
    as_json: bool,
) -> None:
    got, out, err = run(raising(error), *(["--json"] if as_json else []))
    assert (got, err) == (code, f"strata: error: {message}\n")
    if as_json:
        assert json.loads(out)["error"]["message"] == message
        assert out.count("\n") == 1
    else:
        assert out == ""


def test_success(run: Callable[..., tuple[int, str, str]]) -> None:
    def body() -> None:
        remark("on the way")
        print_json({"text": "naïve\n"})

    assert run(body, "--json") == (0, '{"text": "na\\u00efve\\n"}\n', "on the way\n")


def test_a_click_exit_keeps_its_code(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run(raising(click.exceptions.Exit(0))) == (0, "", "")
    assert run(raising(click.exceptions.Exit(3))) == (3, "", "")


def test_the_traceback_is_shown_on_demand(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_DEBUG", "1")
    code, out, err = run(raising(StrataError("it failed")))
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last)" in err
    assert err.endswith("strata: error: it failed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "there is no command 'rum'; did you mean rm or run? (see strata --help)"),
        (["list", "--nothing"], "o such option"),
        (["pull"], "(see strata pull --help)"),
        (["--nothing"], "o such option"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("strata: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


def test_without_arguments_the_help_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: strata")


def start(body: str) -> subprocess.Popen[bytes]:
    """A process whose verb `try` has ``body``."""
    program = f"""
import sys, time, types, click
from strata.cli import main, verbs
@click.command("try")
def command():
    {body}
sys.modules["tried"] = types.SimpleNamespace(command=command)
verbs.VERBS["try"] = ("tried", "Try.")
sys.exit(main(["try"]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_leaves_is_no_failure() -> None:
    process = start("time.sleep(0.2); click.echo('x' * 1000000); click.echo('y')")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_reader_that_leaves_before_the_last_flush_is_no_failure() -> None:
    process = start("print('short', end=''); time.sleep(0.2)")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C in another way")
def test_ctrl_c_ends_with_one_line() -> None:
    process = start("click.echo('ready'); sys.stdout.flush(); time.sleep(30)")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=25)
    assert process.returncode == 130
    assert errors == b"strata: error: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "strata: error: terminated; the same command goes on from here"),
        (signal.SIGINT, 130, "strata: error: interrupted; the same command goes on from here"),
    ],
)
def test_work_that_is_ended_says_that_it_can_go_on(number: int, code: int, line: str) -> None:
    process = start(
        "from strata.cli.failures import resumable, terminable\n"
        "    with terminable(), resumable():\n"
        "        click.echo('ready'); sys.stdout.flush(); time.sleep(30)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=25)
    assert process.returncode == code
    assert errors.decode() == line + "\n"


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a shell does")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(closed: str) -> None:
    code = "import sys; from strata.cli import main; sys.exit(main(sys.argv[1:]))"
    command = f'exec "$0" -c "$1" list {closed}'
    process = subprocess.run(["sh", "-c", command, sys.executable, code], capture_output=True)
    assert process.returncode == 0
    assert process.stderr == b""
    assert (process.stdout == b"") == (">&-" in closed.split())


def test_nothing_said_commands_the_terminal(run: Callable[..., tuple[int, str, str]]) -> None:
    hostile = "\x1b]0;x\x07 \x1b[2J \x9b1m \u202e\x08 end"
    errors = (
        StrataError(f"tensor {hostile}"),
        UsageError(f"no model {hostile}"),
        OSError(errno.ENOENT, "no such file", hostile),
        ValueError(hostile),
        click.UsageError(hostile),
    )
    for error in errors:
        _, out, err = run(raising(error))
        assert out == ""
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        assert "\\x1b[2J" in err
    _, _, err = run(lambda: remark(f"first\n{hostile}"))
    assert [line.isprintable() for line in err.splitlines()] == [True, True]
    _, out, _ = run(lambda: print_table(("NAME",), [[hostile]]))
    assert [line.isprintable() for line in out.splitlines()] == [True, True]


def test_no_record_commands_the_terminal() -> None:
    script = "import logging; from strata.cli.console import log_in_print; log_in_print(); "
    script += "logging.getLogger('x').error('%s failed', '\\x1b[2J')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "\\x1b[2J failed\n"


def test_a_template_cannot_command_the_terminal(run: Callable[..., tuple[int, str, str]]) -> None:
    from strata.text import ChatTemplate

    template = ChatTemplate("{{ raise_exception('\x1b[2J' ~ messages[0].content) }}")
    _, _, err = run(lambda: template.render([{"role": "user", "content": "\x1b[31m"}]))
    assert err == "strata: error: the chat template failed: \\x1b[2J\\x1b[31m\n"


@pytest.mark.parametrize("width", [40, 60, 100])
def test_help_keeps_to_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for verb in ("", *verbs.VERBS):
        assert main([*verb.split(), "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines
        # A name of a file is not cut.
        assert [line for line in lines if len(line) > width and line.strip().count(" ")] == []
