"""Foreign templates and grammars stay within the budget: in a group of exactly its size."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cgroups import group, why_not
from strata.formats import open_model
from support.running import serving

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

REASON = why_not()
GROWING = "{% for m in messages %}{{ m.content }}{% endfor %}{{ ('x' * 6000000) | length }}"
DOUBLING = (
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}{{ ns.s | length }}"
)
STRATA = (sys.executable, "-m", "strata")


def with_template(model: Path, source: str, path: Path) -> Path:
    """The same model with another template, which is no longer than its own."""
    with open_model(model) as file:
        own = file.metadata["tokenizer.chat_template"].encode()
    path.write_bytes(model.read_bytes().replace(own, source.encode().ljust(len(own))))
    return path


def smallest(model: Path, *options: str) -> int:
    """The smallest budget of a conversation with ``model``."""
    command = [*STRATA, "run", str(model), "hi", "--json", "--memory", "20MB", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    message = json.loads(done.stdout)["error"]["message"]
    return int(message.split("needs ")[1].split("MB")[0]) * 10**6


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_run_with_a_foreign_template(smollm2_path: Path, tmp_path: Path) -> None:
    options = ("--max-tokens", "8", "--context", "256")
    growing = with_template(smollm2_path, GROWING, tmp_path / "growing.gguf")
    doubling = with_template(smollm2_path, DOUBLING, tmp_path / "doubling.gguf")
    budget = smallest(growing, *options)
    # A known one needs no such process.
    assert smallest(smollm2_path, *options) < budget - 20e6
    for model, code in ((growing, 0), (doubling, 1)):
        with group(budget) as made:
            command = [*STRATA, "run", str(model), "hi", *options, "--memory", f"{budget}B"]
            done = made.run(command, 120)
        assert done.returncode == code, done.stderr
    assert "the chat template takes more memory" in done.stderr


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("grammars", [False, True])
def test_a_server_with_hostile_grammars(smollm2_path: Path, tmp_path: Path, grammars: bool) -> None:
    model = with_template(smollm2_path, GROWING, tmp_path / "growing.gguf")
    wanted = [*STRATA, "serve", str(model), "--port", "0", "--context", "512", "--memory"]
    done = subprocess.run([*wanted, "20MB"], capture_output=True, text=True, timeout=60)
    budget = int(done.stderr.split("needs ")[1].split("MB")[0]) * 10**6
    if grammars:
        # The least in which there is one.
        with serving(model, "--context", "512", "--memory", f"{budget}B") as (_, url):
            told = refused(url)
        assert "has no room for grammars" in told
        budget = int(told.rpartition("MB have room")[0].split()[-1]) * 10**6
    with group(budget) as made:
        server = made.start([*wanted, f"{budget}B"])
        try:
            assert server.stderr is not None
            lines = [server.stderr.readline()]
            while not lines[-1].startswith("listening at http://"):
                assert lines[-1], lines
                lines.append(server.stderr.readline())
            url = lines[-1].split()[2]
            codes: list[int] = []
            threads = [
                threading.Thread(target=lambda n=n: codes.append(ask(url, n))) for n in range(12)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert set(codes) <= {200, 400, 429}
            assert codes.count(200) >= 6
            assert grammars or set(codes) == {200, 400}
            # There is one at a time, and what it answers obeys it.
            assert (refused(url) == "") == grammars
            assert server.poll() is None
        finally:
            server.terminate()
            server.communicate(timeout=30)
    assert server.returncode == 0


def refused(url: str) -> str:
    """Why a server does not take a schema; empty where it does."""
    body = {
        "model": "growing",
        "prompt": "x",
        "max_tokens": 4,
        "regex": "[{]a{100}",
    }
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert answer.json()["choices"][0]["text"].startswith("{")
        return ""
    assert answer.json()["error"]["code"] == "no_room_for_grammars"
    return str(answer.json()["error"]["message"])


def ask(url: str, number: int) -> int:
    """The status of one of several kinds of requests."""
    body: dict[str, Any] = {
        "model": "growing",
        "messages": [{"role": "user", "content": f"Tell me of {number}."}],
        "max_tokens": 24,
    }
    schema: Any = {"type": "integer", "multipleOf": 99999989}
    if number % 4 == 1:
        schema = {"type": "object", "properties": {f"p{i}": {} for i in range(300)}}
    if number % 2:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema},
        }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
