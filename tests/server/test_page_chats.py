"""The page in a real Chromium: chats are found, renamed, exported, and deleted with a way back;
and which of several models answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strata.server.fleet.entries import Entry
from support.browser import GREEDY, LONG, STORY, Browser, Keys, browser
from support.running_fleet import running_fleet

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def kept(name: str, question: str, answer: str, updated: int) -> dict[str, str]:
    nodes = {
        "1": {"id": 1, "parent": 0, "role": "user", "text": question},
        "2": {"id": 2, "parent": 1, "role": "assistant", "text": answer, "end": {"kind": "done"}},
    }
    chosen = {"0": 1, "1": 2}
    chat = {"id": name, "updated": updated, "nodes": nodes, "chosen": chosen, "next": 3}
    return {f"strata.chat.{name}": json.dumps(chat)}


TWO = {
    **kept("a", "What is a whale?", "A **mammal** of the sea.", 2),
    **kept("b", "Name a river.", "The Danube.", 1),
}


def rows(page: Browser) -> list[str]:
    return [row.text.split("\n")[0] for row in page.all(".chat-list .row")]


def test_chats_are_found_and_renamed(page: Browser) -> None:
    page.open(GREEDY, **TWO, **{"strata.current": "b"})
    page.one("#open-chats").click()
    assert [row[:4] for row in rows(page)] == ["What", "Name"]
    # In what was answered, too, in any order and case.
    page.one("#chat-search").send_keys("danube NAME")
    page.wait(lambda: len(rows(page)) == 1)
    page.one("#chat-search").send_keys("x")
    page.wait(lambda: page.text(".chat-list") == "No chat has these words.")
    page.keys(Keys.ESCAPE)
    page.wait(lambda: len(rows(page)) == 2)

    page.button("Rename", ".chat-list").click()
    page.keys("Rivers", Keys.ENTER)
    page.wait(lambda: rows(page)[1].startswith("Rivers"))
    assert page.chat()["name"] == "Rivers"
    # Who clicks elsewhere is done with it, and what was clicked on is done.
    page.one(".chat-list [aria-label^='Rename What']").click()
    page.keys("Whales")
    page.one(".chat-list [aria-label='Rename Rivers']").click()
    page.wait(lambda: rows(page) == ["Whales"])
    page.keys("no", Keys.ESCAPE)
    page.wait(lambda: len(rows(page)) == 2)
    assert page.one("#chats").is_displayed()
    page.driver.refresh()
    page.one("#open-chats").click()
    assert rows(page)[1].startswith("Rivers")


def test_deleting_can_be_undone(page: Browser) -> None:
    page.open(GREEDY, **TWO, **{"strata.current": "a"})
    before = page.chat()
    page.one("#open-chats").click()
    page.one(".chat-list [aria-label^='Delete What']").click()
    page.wait(lambda: len(rows(page)) == 1)
    assert "What is a whale?" in page.text("#chat-undo-text")
    assert page.answers() == []
    assert page.focused() == "chat-undo-button"
    page.keys(Keys.ENTER)
    page.wait(lambda: len(rows(page)) == 2)
    page.one(".chat-list .row").click()
    page.wait(lambda: page.answers() == ["A mammal of the sea."])
    assert page.chat() == before
    page.one("#open-chats").click()
    assert not page.one("#chat-undo").is_displayed()


def test_an_answer_under_way_is_kept_by_undoing(page: Browser) -> None:
    page.open(LONG)
    page.say(STORY)
    page.grows()
    page.one("#open-chats").click()
    page.one(".chat-list [aria-label^=Delete]").click()
    page.wait(lambda: page.focused() == "chat-undo-button")
    page.keys(Keys.ENTER)
    page.wait(lambda: len(rows(page)) == 1)
    page.one(".chat-list .row").click()
    page.wait(lambda: page.answers() != [])
    assert page.chat()["nodes"]["2"]["end"]["kind"] == "stopped"


def test_a_chat_is_exported(page: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    page.open(GREEDY, **TWO)
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.one("#open-chats").click()
    page.one(".chat-list [aria-label^='Export What']").click()
    file = folder / "What-is-a-whale.md"
    page.wait(file.exists)
    assert file.read_text() == (
        "# What is a whale?\n\n## You\n\nWhat is a whale?\n\n"
        "## Answer\n\nA **mammal** of the sea.\n"
    )


def test_one_of_several_models_is_chosen(smollm2_path: Path, tmp_path: Path) -> None:
    """Both are one file; the second is known by what it is told before."""
    entries = [
        Entry("first", str(smollm2_path)),
        Entry("second", str(smollm2_path), system="Answer in French.", sampling={"temperature": 1}),
    ]
    room = 900 * 10**6
    with (
        running_fleet(entries, room, keepalive_s=0.2) as server,
        browser(server.url, tmp_path) as page,
    ):
        page.open({"max_tokens": "8"})
        page.wait(lambda: page.text("#connection") == "loaded by the first message")
        assert [option.text for option in page.all("#model-choice option")] == ["first", "second"]
        page.say("Hello")
        page.wait(lambda: page.text(".answer .stats").startswith("Loading first"))
        # A machine that is not known is measured first.
        page.wait(lambda: page.one("#send").is_displayed(), 120)
        assert page.text(".answer .stats").startswith("first · ")
        page.wait(lambda: page.text("#connection") == "connected")
        page.one("#model-choice").send_keys("second")
        page.wait(lambda: page.text("#connection") == "loaded by the first message")
        page.say("And you?")
        page.wait(lambda: page.one("#send").is_displayed(), 120)
        assert page.chat()["nodes"]["4"]["model"] == "second"
        assert {m.entry.name for m in server.fleet.loaded} == {"first", "second"}
        page.wait(lambda: page.text("#connection") == "connected")
        # What the model states is what the form begins with.
        page.wait(lambda: page.text("output[for=temperature]") == "1")
        page.driver.refresh()
        page.wait(lambda: page.text("#connection") == "connected")
        assert page.one("#model-choice").get_attribute("value") == "second"
        assert page.driver.title == "second · Strata"
        assert page.errors() == []
