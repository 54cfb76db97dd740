"""One server for the tests of a session, and the same model to compare with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from strata.llm import LLM

if TYPE_CHECKING:
    # Without strata-llm[server] this module skips whoever imports it, which must not be us.
    from support.browser import Browser
    from support.running import Running


ON_EVERY_BACKEND = {"test_openai_client"}
"""Of this folder's modules those that are long tests over the other backends, too: what a server
does above its driver has no backend."""


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.module.__name__.rpartition(".")[2]
    if "backend" in metafunc.fixturenames and name not in ON_EVERY_BACKEND:
        native = pytest.mark.parametrize("backend", ["cpu"], indirect=True, scope="session")
        metafunc.definition.add_marker(native)


@pytest.fixture(scope="session")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    """What answers are compared with."""
    from support.running import load

    with load(smollm2_path) as llm:
        yield llm


@pytest.fixture(scope="session")
def shared_server(smollm2_path: Path, backend: str) -> Iterator[Running]:
    from support.running import load, running

    with load(smollm2_path, backend=backend) as served, running(served, keepalive_s=0.05) as server:
        yield server


@pytest.fixture
def server(shared_server: Running) -> Iterator[Running]:
    """A server without a key; after every test it must hold nothing."""
    yield shared_server
    shared_server.wait_until_free()


@pytest.fixture
def say(server: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """The next answers are this text, in the format of this template."""
    from strata.server import conversation
    from strata.server.parsers import answer_format

    service = server.service
    run = service.run

    def scripted(template: str, text: str) -> None:
        source = f"start: {json.dumps(text, ensure_ascii=False)}"

        def follow(prompts: Any, params: Any, **options: Any) -> Any:
            return run(prompts, replace(params, grammar=service.grammars.lark(source)), **options)

        form = answer_format(f"tools {template}")
        monkeypatch.setattr(conversation, "answer_format", lambda template: form)
        monkeypatch.setattr(service, "run", follow)

    return scripted


@pytest.fixture
def page(server: Running, tmp_path: Path) -> Iterator[Browser]:
    """The page of a server without a key. At the end its console must be clean."""
    from support.browser import browser

    with browser(server.url, tmp_path) as page:
        yield page
        assert page.errors() == []
