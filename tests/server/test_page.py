"""The page in a real Chromium: chat, branches, what it keeps, and what it says of failures."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from strata.server.page import WEB
from support.browser import GREEDY, LONG, STORY, Browser, Keys, browser
from support.running import KEY, NAMES, Running, load, running

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_an_answer_streams_and_is_the_servers(page: Browser, server: Running) -> None:
    page.open({**GREEDY, "max_tokens": "120", "system": "You are brief."})
    page.say("Name three colours, one in bold.")
    page.grows()
    page.answered()
    user, answer = page.chat()["nodes"].values()
    assert user["text"] == "Name three colours, one in bold."
    ask = {
        "model": NAMES[0],
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": user["text"]},
        ],
        "temperature": 0,
        "top_p": 0.95,
        "max_tokens": 120,
    }
    whole = httpx.post(f"{server.url}/v1/chat/completions", json=ask, timeout=60).json()
    assert answer["text"] == whole["choices"][0]["message"]["content"]
    assert answer["stats"]["exact"] is True
    assert answer["stats"]["tokens"] == whole["usage"]["completion_tokens"]
    assert answer["stats"]["prompt"] == whole["usage"]["prompt_tokens"]
    for part in ("tok/s", "first token after", "tokens"):
        assert part in page.text(".answer .stats")
    assert page.text("#announcer").startswith("Answer finished")


def test_stop_frees_the_server(page: Browser, server: Running) -> None:
    page.open(LONG)
    page.say(STORY)
    page.grows()
    page.one("#stop").click()
    page.answered()
    server.wait_until_free()
    assert page.text(".answer .note") == "Stopped."
    kept = page.chat()["nodes"]["2"]
    assert kept["end"] == {"kind": "stopped"}
    assert kept["stats"]["exact"] is False
    assert kept["text"].split()[0] in page.answers()[0]
    assert page.focused() == "prompt"


def test_retry_and_edit_make_branches(page: Browser) -> None:
    page.open({"temperature": "1.5", "max_tokens": "12"})
    page.say("Invent a name.")
    page.answered()
    first = page.answers()
    page.button("Retry").click()
    page.answered()
    second = page.answers()
    assert first != second
    assert "2/2" in page.one(".answer .branches").text
    page.one(".answer [aria-label='Previous answer']").click()
    page.wait(lambda: page.answers() == first)
    page.say("Another one.")
    page.answered()
    assert len(page.answers()) == 2

    page.all(".user .actions button")[1].click()
    area = page.one(".edit textarea")
    assert area.get_attribute("value") == "Invent a name."
    page.chord(Keys.CONTROL, "a")
    area.send_keys("Invent a town.", Keys.ENTER)
    page.wait(lambda: len(page.all(".user")) == 1)
    page.answered()
    assert page.text(".user > .body") == "Invent a town."
    nodes = page.chat()["nodes"]
    # Two first messages; under the first of them two answers, one of which was gone on from.
    assert [n["parent"] for n in nodes.values()] == [0, 1, 1, 2, 4, 0, 6]
    page.one(".user [aria-label='Previous version']").click()
    page.wait(lambda: page.answers()[:1] == first)
    assert len(page.answers()) == 2


def test_a_chat_outlives_the_page(page: Browser) -> None:
    page.open(GREEDY)
    page.say("What is 2 + 2?")
    page.answered()
    before = page.answers()
    page.driver.refresh()
    page.wait(lambda: page.answers() == before)
    page.one("#new-chat").click()
    page.wait(lambda: page.answers() == [])
    assert page.one("#welcome").is_displayed()
    page.one("#open-chats").click()
    row = page.one(".chat-list .row")
    assert row.text.startswith("What is 2 + 2?")
    row.click()
    page.wait(lambda: page.answers() == before)
    page.one("#open-chats").click()
    page.button("Delete", ".chat-list").click()
    page.wait(lambda: page.text(".chat-list") == "None yet.")
    assert page.answers() == []
    assert not page.run("return Object.keys(localStorage).filter((k) => k.includes('chat')).length")


def test_a_reload_within_an_answer_keeps_what_there_was(page: Browser, server: Running) -> None:
    page.open(LONG)
    page.say(STORY)
    page.grows()
    page.driver.refresh()
    page.wait(lambda: page.all(".answer"))
    server.wait_until_free()
    assert page.answers()[0]
    assert page.text(".answer .note") == "The page was left while this answer was given."
    assert page.button("Retry").is_displayed()


def test_a_refusal_is_told(page: Browser) -> None:
    page.open(GREEDY)
    page.run("document.querySelector('#prompt').value = 'word '.repeat(2000)")
    page.one("#send").click()
    page.answered()
    page.wait(lambda: page.all(".answer .note"))
    assert "does not fit a context of" in page.text(".answer .note")
    assert "400" in page.errors()[0]


def test_a_key_is_asked_for(smollm2_path: Path, tmp_path: Path) -> None:
    with (
        load(smollm2_path) as llm,
        running(llm, api_key=KEY) as server,
        browser(server.url, tmp_path) as page,
    ):
        page.open(GREEDY)
        page.wait(lambda: page.one("#key").is_displayed())
        assert page.text("#connection") == "needs a key"
        page.keys("wrong", Keys.ENTER)
        page.wait(lambda: "was not accepted" in page.text("#key-text"))
        page.wait(lambda: page.one("#key").is_displayed())
        page.keys(KEY, Keys.ENTER)
        page.wait(lambda: page.text("#connection") == "connected")
        page.say("Hello")
        page.answered()
        assert page.answers()[0]
        # Kept for the tab, not beyond it unless that was asked for.
        assert page.run("return localStorage.getItem('strata.key')") is None
        page.driver.refresh()
        page.wait(lambda: page.text("#connection") == "connected")
        assert not page.one("#key").is_displayed()
        assert all("401" in error for error in page.errors())


def test_a_lost_connection(smollm2_path: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with browser(f"http://127.0.0.1:{port}", tmp_path) as page:
        with load(smollm2_path) as llm, running(llm, port=port, grace_s=0.1) as server:
            page.open(LONG)
            page.say(STORY)
            page.grows()
            server.server.should_exit = True
            page.answered()
        kept = page.answers()
        assert kept[0]
        assert page.one(".answer .note").is_displayed()
        page.wait(lambda: "connection lost" in page.text("#connection"))
        page.button("Retry").click()
        page.wait(lambda: page.text(".answer .note") == "The connection to the server was lost.")
        with load(smollm2_path) as llm, running(llm, port=port) as server:
            page.wait(lambda: page.text("#connection") == "connected")
            page.button("Retry").click()
            page.grows()
            page.keys(Keys.ESCAPE)
            page.answered()
            server.wait_until_free()
        assert len(page.chat()["nodes"]) == 4


def test_the_pages_files(server: Running) -> None:
    root = httpx.get(server.url)
    assert root.headers["content-type"].startswith("text/html")
    rules = root.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert httpx.head(server.url).status_code == 200
    for path in WEB.iterdir():
        answer = httpx.get(f"{server.url}/web/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-security-policy"] == rules
        again = {"if-none-match": answer.headers["etag"]}
        assert httpx.get(f"{server.url}/web/{path.name}", headers=again).status_code == 304
        if path.suffix == ".js":
            assert answer.headers["content-type"].startswith("text/javascript")
        # Everything is at home: no address of elsewhere is in any file, but for namespaces.
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        text = text.replace("http://www.w3.org/1998/Math/MathML", "")
        assert "http://" not in text
        assert "https://" not in text.replace("https?:", "")
