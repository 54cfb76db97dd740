"""The page in a real Chromium: keys, names for screen readers, widths, colours, motion."""

from __future__ import annotations

import json

import pytest

from support.browser import GREEDY, LONG, STORY, Browser, Keys
from support.running import Running

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_with_the_keyboard_alone(page: Browser, server: Running) -> None:
    page.open(LONG)
    assert page.focused() == "prompt"
    # What is asked for is long: the answer must not be over before it is stopped.
    first, second = STORY.split(", ")
    page.keys(first)
    page.chord(Keys.SHIFT, Keys.ENTER)
    page.keys(second)
    assert page.one("#prompt").get_attribute("value") == f"{first}\n{second}"
    page.keys(Keys.ENTER)
    page.grows()
    assert page.focused() == "prompt"
    page.keys(Keys.ESCAPE)
    page.answered()
    server.wait_until_free()
    page.keys(Keys.ARROW_UP)
    assert page.focused("aria-label") == "Your message, edited"
    page.keys(Keys.ESCAPE)
    assert page.focused() == "prompt"

    names = []
    for _ in range(60):
        page.keys(Keys.TAB)
        names.append(page.focused() or page.driver.switch_to.active_element.text)
        if names[-1] == "open-settings":
            break
    # Once round the page: no element keeps the focus to itself, none that is hidden gets it.
    assert names[-1] == "open-settings"
    assert "stop" not in names
    assert "machine-toggle" not in names
    page.keys(Keys.ENTER)
    assert page.focused() == "system"
    page.keys(Keys.TAB)
    assert page.focused() == "temperature"
    # What the model states, or nothing: not a default of the page's own.
    assert page.text("output[for=temperature]") == "0, greedy"
    page.keys(Keys.END)
    assert page.text("output[for=temperature]") == "2"
    page.keys(Keys.ESCAPE)
    assert page.focused() == "open-settings"
    assert not page.all("dialog[open]")
    assert json.loads(page.run("return localStorage['strata.settings']"))["temperature"] == "2"


def test_everything_has_a_name(page: Browser) -> None:
    page.open(GREEDY)
    page.say("Hello")
    page.answered()
    for dialog in (None, "#settings", "#chats", "#key"):
        if dialog is not None:
            page.run("document.querySelector(arguments[0]).showModal()", dialog)
        nodes = page.command("Accessibility.getFullAXTree")["nodes"]
        controls = [
            node
            for node in nodes
            if node.get("role", {}).get("value")
            in ("button", "textbox", "slider", "spinbutton", "checkbox", "dialog", "image", "link")
        ]
        assert len(controls) >= 2
        nameless = [n for n in controls if not n.get("name", {}).get("value")]
        assert nameless == []
        page.run("for (const d of document.querySelectorAll('dialog[open]')) d.close()")


HOSTILE_WIDTH = (
    "# A heading\n\n" + "W" * 400 + "\n\n```\n" + "x = " * 200 + "\n```\n\n| "
    "a | " * 30 + "\n|" + "---|" * 30 + "\n" + "| cell " * 30 + "|\n\n`" + "c" * 300 + "`\n"
)


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_a_phone(page: Browser, width: int) -> None:
    nodes = {
        "1": {"id": 1, "parent": 0, "role": "user", "text": "V" * 500},
        "2": {
            "id": 2,
            "parent": 1,
            "role": "assistant",
            "text": HOSTILE_WIDTH,
            "end": {"kind": "done"},
        },
    }
    chat = {"id": "a", "updated": 1, "nodes": nodes, "chosen": {"0": 1, "1": 2}, "next": 3}
    page.size(width, 700)
    page.open(GREEDY, **{"strata.chat.a": json.dumps(chat), "strata.current": "a"})
    assert len(page.answers()) == 1
    for _ in range(2):
        assert page.run("return document.documentElement.scrollWidth") <= width
        assert page.run("return document.querySelector('.scroller').scrollWidth") <= width
        assert page.overflow() == []
        toggle = page.one("#machine-toggle")
        assert toggle.is_displayed()
        toggle.click()
    assert toggle.get_attribute("aria-expanded") == "false"
    toggle.click()
    assert page.one("#strip").is_displayed()
    body = page.one("#machine-body")
    assert page.run("return arguments[0].scrollWidth <= arguments[0].clientWidth", body)
    for opener, dialog in (("#open-settings", "#settings"), ("#open-chats", "#chats")):
        page.one(opener).click()
        assert (
            page.run("return arguments[0].getBoundingClientRect().right", page.one(dialog)) <= width
        )
        page.keys(Keys.ESCAPE)


PAIRS = [
    ("--ink", "--paper"),
    ("--ink", "--panel"),
    ("--ink", "--raised"),
    ("--soft-ink", "--paper"),
    ("--soft-ink", "--panel"),
    ("--soft-ink", "--raised"),
    ("--accent", "--paper"),
    ("--bad", "--paper"),
    ("--on-accent", "--accent"),
]


def test_dark_and_light(page: Browser) -> None:
    page.emulate(prefers_color_scheme="light")
    page.open()

    def colour(name: str) -> list[int]:
        return list(
            page.run(
                """
                const probe = document.createElement("i");
                probe.style.color = `var(${arguments[0]})`;
                document.body.append(probe);
                const found = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
                probe.remove();
                return found;
                """,
                name,
            )
        )

    light = colour("--paper")
    worst = {"light": min(contrast(colour(a), colour(b)) for a, b in PAIRS)}
    page.emulate(prefers_color_scheme="dark")
    dark = colour("--paper")
    worst["dark"] = min(contrast(colour(a), colour(b)) for a, b in PAIRS)
    assert sum(dark) < 150 < 600 < sum(light)
    # WCAG 2.2, 1.4.3: 4.5 for text of ordinary size.
    assert min(worst.values()) >= 4.5, worst

    page.one("#theme").click()
    assert colour("--paper") == light
    page.driver.refresh()
    assert colour("--paper") == light
    page.one("#theme").click()
    page.emulate(prefers_color_scheme="light")
    assert colour("--paper") == dark
    page.one("#theme").click()
    assert colour("--paper") == light


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(rgb: list[int]) -> float:
        shares = [c / 255 for c in rgb[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_reduced_motion(page: Browser) -> None:
    page.emulate(prefers_reduced_motion="reduce")
    page.open(LONG)
    page.say(STORY)
    page.grows()
    moving = page.run(
        "return document.getAnimations().filter((a) => a.playState === 'running').length"
    )
    assert moving == 0
    page.keys(Keys.ESCAPE)
    page.answered()
