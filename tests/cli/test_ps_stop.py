"""``strata ps`` and ``strata stop``, with a server and without."""

from __future__ import annotations

import json

import pytest

from strata.cli import main

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

from strata.server.fleet import fleet as fleet_module
from strata.server.fleet.entries import Entry
from support.fake_children import MB, FakeChildren
from support.running_fleet import running_fleet


def test_a_model_is_listed_and_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet_module, "Child", FakeChildren())
    with running_fleet([Entry("a", "x.gguf")], 300 * MB) as served:
        url = ["--url", served.url]
        assert main(["ps", *url]) == 0
        assert capsys.readouterr().out == "no model is loaded\n"
        served.ask("/v1/chat/completions", {"model": "a"})
        assert main(["ps", *url]) == 0
        assert "200 MB" in capsys.readouterr().out
        assert main(["ps", *url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["models"][0]["name"] == "a"
        assert main(["stop", "b", *url]) == 1
        assert "there is no model 'b' here" in capsys.readouterr().err
        assert main(["stop", "a", *url]) == 0
        assert main(["ps", *url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"models": []}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://127.0.0.1:1/x y"])
def test_no_server_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ps"], ["stop", "a"]):
        assert main([*command, "--url", url]) in (1, 2)
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which model?"),
        (["a", "b", "--alias", "c"], "--alias is for one model"),
        (["a", "b", "--reasoning", "off"], "--reasoning is for one model"),
        (["smollm2", "--keep-alive", "soon"], "--keep-alive"),
        (["smollm2", "--keep-alive", "5m", "--kv-memory", "1GB"], "--kv-memory is for one"),
        (["--models", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_arguments_of_serve(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err
