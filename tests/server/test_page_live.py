"""The live picture of the machine beside the chat, in a real Chromium."""

from __future__ import annotations

from typing import Any

import pytest

from strata.server.telemetry import live
from support.browser import LONG, STORY, Browser, Keys

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_the_live_picture_changes(page: Browser) -> None:
    page.open(LONG)
    assert len(page.all("#strip .cell")) == 32
    page.wait(lambda: page.text("#rate") == "idle")
    assert page.text("#roofline-text")
    page.say(STORY)
    lit: set[int] = set()
    counts: set[str] = set()

    def watch() -> bool:
        cells = "return [...document.querySelectorAll('.cell')].findIndex(e => e.matches('.now'))"
        lit.add(page.run(cells))
        counts.add(page.text("#sweep-text").split(",")[0])
        return len(lit - {-1}) >= 3 and len(counts) >= 4

    page.wait(watch)
    page.wait(lambda: float(page.text("#rate")) > 1)
    assert page.text("#requests") == "1 running"
    assert float(page.text("#per-sweep")) >= 1
    assert page.text(".legend div:nth-child(2) dt") == "KV cache, used"
    assert page.text(".legend div:nth-child(2) dd").endswith("MB")
    assert page.one("#roofline .point").get_attribute("visibility") == "visible"
    assert "operations per byte" in page.text("#roofline-text")
    page.keys(Keys.ESCAPE)
    page.answered()
    page.wait(lambda: page.text("#rate") == "idle")
    assert page.text("#sweep-text").endswith("at rest")


def test_everything_that_can_be_known_is_shown(
    page: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, state = live._model, live._state

    def whole_model(*arguments: Any) -> dict[str, Any]:
        picture = model(*arguments)
        for segment in picture["segments"][8:31]:
            segment |= {"streamed": True, "streamed_bytes": segment["bytes"] // 2}
        machine = {"memory_bytes_per_s": 43e9, "disk_bytes_per_s": 2.1e9, "ops_per_s": 1.78e12}
        return {**picture, "machine": machine}

    def whole_state(*arguments: Any) -> dict[str, Any]:
        picture = state(*arguments)
        host, disk = picture["tiers"]
        host |= {"ring_bytes": 24_000_000, "activations_bytes": 11_000_000}
        host |= {"budget_bytes": 10**9, "peak_bytes": 512_000_000}
        disk |= {"streamed_bytes": 49_000_000, "read_bytes_per_s": 1.9e9}
        if picture["roofline"] is not None:
            picture["roofline"]["disk_bytes_per_s"] = 1.9e9
        return {**picture, "predicted": {"output_tok_s": 20.0}}

    monkeypatch.setattr(live, "_model", whole_model)
    monkeypatch.setattr(live, "_state", whole_state)
    # An answer that nobody has had: one like a former one is guessed, and over within a second.
    page.open({**LONG, "seed": "20"})
    page.say("Tell me at length of a lighthouse, its keeper, and every storm of forty years.")
    page.wait(lambda: "reached" in page.text("#predicted"))
    assert page.text("#predicted").startswith("predicted 20.0 tok/s · reached ")
    assert len(page.all(".cell.streamed")) == 23
    assert page.text("#segments-text").startswith("9 resident, 23 streamed: ")
    assert page.one("#strip-key").is_displayed()
    names = page.run("return [...document.querySelectorAll('.legend dt')].map(e => e.textContent)")
    assert "Weights, streaming through" in names
    assert "Activations" in names
    assert names[-1] == "Free"
    host, disk = (e.text.replace("\u00a0", " ") for e in page.all(".tier > .fine"))
    assert host == "Peak of the process 512 MB of 1.00 GB allowed (51 %)"
    assert disk == "49.0 MB read in each sweep · reading 1.90 GB/s"

    def share(part: str) -> float:
        style = page.run(f"return document.querySelector('.bar .part.{part}').style.width")
        return float(str(style).removesuffix("%"))

    # Of the budget, or of what is owned where this process holds more than that.
    assert share("streamed") / share("activations") == pytest.approx(24 / 11, rel=1e-3)
    assert 0 < share("streamed") <= 2.4
    assert len(page.all("#roofline .ceiling")) == 2
    assert "of the ceiling" in page.text("#roofline-text")
    said = page.text("#roofline-text").replace("\u00a0", " ")
    assert "1.90 GB/s from disk (90 % of the ceiling)" in said
    page.keys(Keys.ESCAPE)
    page.answered()
