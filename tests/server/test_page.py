"""The page in a real Chromium: chat, branches, the live picture, keys, widths, colours."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Browser, browser
from running import KEY, NAMES, Running, load, running
from selenium.webdriver.common.keys import Keys

from strata.server import live

pytestmark = pytest.mark.slow

GREEDY = {"temperature": "0", "max_tokens": "40"}
LONG = {"temperature": "0.7", "max_tokens": "900", "seed": "1"}
STORY = "Write a very long story about a ship, with many chapters."


@pytest.fixture
def page(server: Running, tmp_path: Path) -> Iterator[Browser]:
    """The page of a server without a key. At the end its console must be clean."""
    with browser(server.url, tmp_path) as page:
        yield page
        assert page.errors() == []


def grows(page: Browser) -> None:
    """Wait until the last answer has words and gets more."""
    page.wait(lambda: page.answers()[-1:] not in ([], [""]))
    before = page.answers()[-1]
    page.wait(lambda: page.answers()[-1] != before)


def test_an_answer_streams_and_is_the_servers(page: Browser, server: Running) -> None:
    page.open({**GREEDY, "max_tokens": "120", "system": "You are brief."})
    page.say("Name three colours, one in bold.")
    grows(page)
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
    grows(page)
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
    grows(page)
    page.driver.refresh()
    page.wait(lambda: page.all(".answer"))
    server.wait_until_free()
    assert page.answers()[0]
    assert page.text(".answer .note") == "The page was left while this answer was given."
    assert page.button("Retry").is_displayed()


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
            segment["streamed"] = True
        machine = {"memory_bytes_per_s": 43e9, "disk_bytes_per_s": 2.1e9, "ops_per_s": 1.78e12}
        return {**picture, "machine": machine}

    def whole_state(*arguments: Any) -> dict[str, Any]:
        picture = state(*arguments)
        host, disk = picture["tiers"]
        host |= {"ring_bytes": 24_000_000, "activations_bytes": 11_000_000}
        host |= {"budget_bytes": 10**9, "peak_bytes": 512_000_000}
        disk |= {"streamed_bytes": 49_000_000, "read_bytes_per_s": 1.9e9}
        return {**picture, "predicted": {"output_tok_s": 20.0}}

    monkeypatch.setattr(live, "_model", whole_model)
    monkeypatch.setattr(live, "_state", whole_state)
    page.open(LONG)
    page.say(STORY)
    page.wait(lambda: "reached" in page.text("#predicted"))
    assert page.text("#predicted").startswith("predicted 20.0 tok/s · reached ")
    assert len(page.all(".cell.streamed")) == 23
    assert page.text("#segments-text").startswith("9 resident (")
    assert page.one("#strip-key").is_displayed()
    names = page.run("return [...document.querySelectorAll('.legend dt')].map(e => e.textContent)")
    assert "Weights, streaming through" in names
    assert "Activations" in names
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
    page.keys(Keys.ESCAPE)
    page.answered()


def test_with_the_keyboard_alone(page: Browser, server: Running) -> None:
    page.open(LONG)
    assert page.focused() == "prompt"
    page.keys("A first line")
    page.chord(Keys.SHIFT, Keys.ENTER)
    page.keys("and a second.")
    assert page.one("#prompt").get_attribute("value") == "A first line\nand a second."
    page.keys(Keys.ENTER)
    grows(page)
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
    page.keys(Keys.HOME)
    assert page.text("output[for=temperature]") == "0, greedy"
    page.keys(Keys.ESCAPE)
    assert page.focused() == "open-settings"
    assert not page.all("dialog[open]")
    assert json.loads(page.run("return localStorage['strata.settings']"))["temperature"] == "0"


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
    grows(page)
    moving = page.run(
        "return document.getAnimations().filter((a) => a.playState === 'running').length"
    )
    assert moving == 0
    page.keys(Keys.ESCAPE)
    page.answered()


def test_a_refusal_is_told(page: Browser) -> None:
    page.open(GREEDY)
    page.run("document.querySelector('#prompt').value = 'word '.repeat(2000)")
    page.one("#send").click()
    page.answered()
    page.wait(lambda: page.all(".answer .note"))
    assert "leaves no room in a context" in page.text(".answer .note")
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
            grows(page)
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
            grows(page)
            page.keys(Keys.ESCAPE)
            page.answered()
            server.wait_until_free()
        assert len(page.chat()["nodes"]) == 4


HTML = {
    "a plain word": "<p>a plain word</p>",
    "**a** and *b* and ***c*** and ~~d~~": "<p><strong>a</strong> and <em>b</em> and "
    "<strong><em>c</em></strong> and <del>d</del></p>",
    "snake_case_name and __main__ call": "<p>snake_case_name and <strong>main</strong> call</p>",
    "2 * 3 * 4": "<p>2 * 3 * 4</p>",
    r"\*not\* `a*b*`": "<p>*not* <code>a*b*</code></p>",
    "*a `*` b*": "<p><em>a <code>*</code> b</em></p>",
    "``a ` b``": "<p><code>a ` b</code></p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "## Two ##": "<h4>Two</h4>",
    "---": "<hr>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "- a\n  - b\n- c": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   b\n\n2. c": "<ol><li>a<p>b</p></li><li>c</li></ol>",
    "- a\ngoes on": "<ul><li>a<br>goes on</li></ul>",
    "| a | b |\n|---|--:|\n| 1 | 2\\|3 |": '<div class="table"><table><thead><tr>'
    '<th class="align-start">a</th><th class="align-end">b</th></tr></thead><tbody><tr>'
    '<td class="align-start">1</td><td class="align-end">2|3</td></tr></tbody></table></div>',
    "<img src=x onerror=alert(1)>": "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
    "<script>alert(1)</script>": "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>",
    "[a](javascript:alert(1))": "<p><span>a</span></p>",
    "[a](JaVa\tScript:alert(1))": "<p><span>a</span></p>",
    "[a](data:text/html,x)": "<p><span>a</span></p>",
    "[a](//evil.example)": "<p><span>a</span></p>",
}
LINK = 'target="_blank" rel="noopener noreferrer nofollow"'
HTML |= {
    "[a](https://b.example/c_(d))": '<p><a href="https://b.example/c_(d)" '
    f'title="https://b.example/c_(d)" {LINK}>a</a></p>',
    "see https://b.example/.": '<p>see <a href="https://b.example/" '
    f'title="https://b.example/" {LINK}>https://b.example/</a>.</p>',
    "![a](https://b.example/c.png)": '<p><a href="https://b.example/c.png" '
    f'title="https://b.example/c.png" {LINK}>a</a></p>',
}


def test_markdown_becomes_elements(page: Browser) -> None:
    page.open()
    script = """
        return texts.map((text) => {
          const node = document.createElement("div");
          render(node, text);
          return node.innerHTML;
        });
    """
    assert dict(zip(HTML, page.rendering(script, list(HTML)), strict=True)) == HTML


def test_growing_markdown_is_what_it_would_be_at_once(page: Browser) -> None:
    text = "# T\n\na *b*\n- c\n  - d\n\n```py\nx = 1\n\ny\n```\n\n"
    text += "| a | b |\n|--|--|\n| 1 | 2 |\n\nend\n"
    script = """
        const grown = document.createElement("div");
        for (let end = 0; end <= texts.length; end += 1) {
          render(grown, texts.slice(0, end));
          const fresh = document.createElement("div");
          render(fresh, texts.slice(0, end));
          if (grown.innerHTML !== fresh.innerHTML) return texts.slice(0, end);
        }
        return "the same";
    """
    page.open()
    assert page.rendering(script, text) == "the same"


def test_hostile_markdown_takes_no_time(page: Browser) -> None:
    size = 50_000
    texts = [
        part * (size // len(part))
        for part in (
            *("*", "_", "~", "`", "[", "]", "(", "![", "> ", "- ", "#", "|", "\\", "*a ", "**a*"),
            *("_a", "[a](", "[a](b", "`a``", "https://", "- - ", "| - ", "1. ", "a|\n-|\n"),
            *("```\n", "<a b", "> - "),
            *(" ", "\t", "* _", "***a", "a\n- ", "-\n\n", "[[a]", "h", "<", "- x\n  "),
        )
    ]
    texts += ["\n".join(" " * n + "- a" for n in range(300))]
    texts += ["".join("`" * n + " " for n in range(300))]
    script = """
        let worst = [0, ""];
        for (const text of texts) {
          const start = performance.now();
          render(document.createElement("div"), text);
          const time = performance.now() - start;
          if (time > worst[0]) worst = [time, text.slice(0, 12)];
        }
        return worst;
    """
    page.open()
    milliseconds, which = page.rendering(script, texts)
    assert milliseconds < 2000, which


def test_the_pages_files(server: Running) -> None:
    root = httpx.get(server.url)
    assert root.headers["content-type"].startswith("text/html")
    rules = root.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert httpx.head(server.url).status_code == 200
    web = Path(live.__file__).parent / "web"
    for path in web.iterdir():
        answer = httpx.get(f"{server.url}/web/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-security-policy"] == rules
        again = {"if-none-match": answer.headers["etag"]}
        assert httpx.get(f"{server.url}/web/{path.name}", headers=again).status_code == 304
        if path.suffix == ".js":
            assert answer.headers["content-type"].startswith("text/javascript")
        # Everything is at home: no address of elsewhere is in any file, but for a namespace.
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text.replace("https?:", "")
