"""``strata serve`` as a process: how it begins, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from strata.cli import main
from support.running import serving, wait_for
from support.sampling import every

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


def stream(url: str, tokens: int) -> tuple[urllib.request.Request, list[bytes], threading.Thread]:
    """A request whose answer has begun, and the lines that have come."""
    body = {
        "model": "model",
        "prompt": "Once",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    lines: list[bytes] = []

    def read() -> None:
        with urllib.request.urlopen(request, timeout=60) as answer:
            try:
                lines.extend(answer)
            except OSError:
                lines.append(b"cut off")

    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: bool(lines))
    return request, lines, thread


@pytest.mark.parametrize("number", every(2, [signal.SIGTERM, signal.SIGINT]))
def test_a_signal_lets_what_runs_finish(smollm2_path: Path, number: signal.Signals) -> None:
    options = ("--alias", "model", "--context", "512", "--chat-template", "{{ messages[0].role }}!")
    options = (*options, "--max-tokens", "3", "--stop", "\n")
    with serving(smollm2_path, *options) as (process, url):
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert json.load(answer) == {"status": "ok"}
        said = b'{"messages": [{"role": "user", "content": "x"}]}'
        with urllib.request.urlopen(f"{url}/apply-template", said) as answer:
            assert json.load(answer)["prompt"] == "user!"
        said = b'{"prompt": "One, two,"}'
        with urllib.request.urlopen(f"{url}/completion", said) as answer:
            assert json.load(answer)["tokens_predicted"] == 3
        _, lines, thread = stream(url, 60)
        process.send_signal(number)
        thread.join(30)
        assert process.wait(30) == 0
        assert lines[-2:] == [b"data: [DONE]\n", b"\n"]
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("after", every(3, [0.02, 0.0, 0.2]))
def test_it_ends_well_while_it_loads(smollm2_path: Path, after: float) -> None:
    program = (
        "import socket, sys; from strata.server import listening; from strata.__main__ import run\n"
        "bind = listening.bind\n"
        "listening.bind = lambda settings: (bind(settings), print('bound', flush=True))[0]\n"
        "sys.argv = ['strata', 'serve', sys.argv[1], '--port', '0', '--memory', '1GB']; run()"
    )
    command = [sys.executable, "-c", program, str(smollm2_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"bound\n"
        time.sleep(after)
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == b"" or errors.startswith(b"listening at")


def test_what_takes_too_long_is_cut_off_within_the_grace(smollm2_path: Path) -> None:
    options = ("--alias", "model", "--context", "8192", "--parallel", "1", "--grace", "0.5")
    with serving(smollm2_path, *options) as (process, url):
        _, lines, thread = stream(url, 8000)
        # A page with the live picture holds a connection that never ends by itself.
        live = urllib.request.urlopen(f"{url}/live")
        assert live.readline() == b"event: model\n"
        process.terminate()
        assert process.wait(30) == 0
        thread.join(30)
        assert b"data: [DONE]\n" not in lines
        last = json.loads(lines[-2].removeprefix(b"data: "))
        assert last["error"]["code"] == "shutting_down"
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_one_line(
    smollm2_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", str(smollm2_path), "--port", str(port)]) == 1
    errors = capsys.readouterr().err
    assert errors == (
        f"strata: error: 127.0.0.1 port {port} is in use; choose another with --port\n"
    )


def test_several_addresses_have_one_port_and_are_served_alike(smollm2_path: Path) -> None:
    options = ("--host", "127.0.0.1, 127.0.0.2", "--context", "64", "--api-key", "k")
    with serving(smollm2_path, *options) as (_, url):
        # The port is the one that was free at the first address.
        port = urlsplit(url).port
        for host in ("127.0.0.1", "127.0.0.2"):
            with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=30) as answer:
                assert json.load(answer) == {"status": "ok"}
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://{host}:{port}/v1/models", timeout=30)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.3", port), timeout=30)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key"),
        (["--host", "127.0.0.1,0.0.0.0"], 2, "--api-key"),
        (["--host", " , "], 2, "no address"),
        (["--host", "0.0.0.0", "--api-key", " "], 2, "empty"),
        (["--host", "no.such.host.invalid", "--api-key", "k"], 1, "cannot listen at"),
        (["--port", "70000"], 2, "70000"),
        (["--parallel", "0"], 2, "parallel"),
        (["--cors-origin", "example.org"], 2, "no web origin"),
    ],
)
def test_wrong_usage(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nothing.gguf", *options]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_the_key_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRATA_API_KEY", "k")
    # It gets as far as the model, which is not there.
    assert main(["serve", "nothing.gguf", "--host", "0.0.0.0", "--port", "0"]) != 0
    assert "nothing.gguf" in capsys.readouterr().err
