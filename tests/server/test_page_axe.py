"""axe-core finds no fault in the page, whatever is open. It is given as a file:
``STRATA_TEST_AXE=.../axe.min.js`` (npm install axe-core)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.browser import GREEDY, Browser

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ANSWER = """# Whales

A **mammal**, see [more](https://example.org), with `code`.

- one
- two

| a | b |
|---|---|
| 1 | 2 |

> A quotation.

```python
print("code that is wider than a phone, and than the column that answers have on a desk")  # so
```
"""
CHAT = {
    "id": "a",
    "updated": 1,
    "nodes": {
        "1": {"id": 1, "parent": 0, "role": "user", "text": "What is a whale?"},
        "2": {
            "id": 2,
            "parent": 1,
            "role": "assistant",
            "text": ANSWER,
            "thought": "They ask of whales.",
            "end": {"kind": "length"},
            "stats": {"tokens": 9, "exact": True, "rate": 12.5, "ttft": 0.2, "prompt": 30},
        },
        "3": {
            "id": 3,
            "parent": 1,
            "role": "assistant",
            "text": "",
            "end": {"kind": "refused", "message": "No room."},
        },
    },
    "chosen": {"0": 1, "1": 2},
    "next": 4,
}


def faults(page: Browser) -> list[str]:
    """What axe-core finds wrong, however little it is."""
    found: Any = page.driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']})"
        ".then((r) => done(r.violations), (e) => done([{id: String(e), impact: 'critical',"
        " nodes: []}]));"
    )
    return [f"{each['id']}: {[node['html'][:100] for node in each['nodes']]}" for each in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
def test_no_fault(page: Browser, scheme: str, width: int) -> None:
    given = os.environ.get("STRATA_TEST_AXE")
    if given is None:
        pytest.skip("STRATA_TEST_AXE does not say where axe.min.js is")
    page.command("Page.setBypassCSP", enabled=True)
    page.emulate(prefers_color_scheme=scheme)
    if width < 500:
        page.size(width, 844)
    kept = {"strata.chat.a": json.dumps(CHAT), "strata.current": "a"}
    page.open(GREEDY, **kept)
    page.wait(lambda: page.text("#connection") == "connected")
    # An alias is no other model to choose.
    assert not page.one("#model-choice").is_displayed()
    page.run(Path(given).read_text())
    assert faults(page) == []
    if width < 500:
        page.one("#machine-toggle").click()
        assert faults(page) == []
        page.one("#machine-toggle").click()
    for opener, dialog in (("#open-settings", "#settings"), ("#open-chats", "#chats")):
        page.one(opener).click()
        assert faults(page) == [], dialog
        page.run("document.querySelector(arguments[0]).close()", dialog)
    page.one("#open-chats").click()
    page.one(".chat-list [aria-label^=Rename]").click()
    assert faults(page) == []
    page.run("document.querySelector('#chats').close(); document.querySelector('#key').showModal()")
    assert faults(page) == []
    shots = os.environ.get("STRATA_TEST_SHOTS")
    if shots is not None:
        page.run("document.querySelector('#key').close()")
        page.driver.save_screenshot(f"{shots}/{width}-{scheme}.png")
        page.one("#open-chats").click()
        page.driver.save_screenshot(f"{shots}/{width}-{scheme}-chats.png")
