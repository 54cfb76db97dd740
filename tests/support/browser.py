"""A real Chromium without a window, and the page in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.running import wait_for

pytest.importorskip("selenium", reason="the package selenium is not installed")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys as Keys
from selenium.webdriver.remote.webelement import WebElement

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1360,900",
)


GREEDY = {"temperature": "0", "max_tokens": "40"}
LONG = {"temperature": "0.7", "max_tokens": "900", "seed": "1"}
"""Settings of the page's form."""

STORY = "Write a very long story about a ship, with many chapters."


class Browser:
    """The page of one server in one browser, whose storage begins empty."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, settings: dict[str, str] | None = None, **storage: str) -> None:
        """Load the page with ``settings`` of its form and other things in its storage."""
        kept = json.dumps({"strata.settings": json.dumps(settings or {}), **storage})
        # Before the page's own scripts, and once: a reload finds what the page has stored.
        fill = f"if (!localStorage.length) Object.assign(localStorage, {kept});"
        self.command("Page.addScriptToEvaluateOnNewDocument", source=fill)
        self.driver.get(self.url)
        self.wait(lambda: self.text("#connection") != "connecting")

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def rendering(self, script: str, *arguments: object) -> Any:
        """The value of an async function's body, which gets markdown.js's ``render``."""
        return self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "const texts = arguments[0];"
            "import(`${location.origin}/web/markdown.js`)"
            f".then(async ({{ render }}) => {{ {script} }})"
            ".then(done, (e) => done('failed: ' + e));",
            *arguments,
        )

    def command(self, name: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def emulate(self, **features: str) -> None:
        """Media features, such as ``prefers_color_scheme="dark"``."""
        found = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.command("Emulation.setEmulatedMedia", features=found)

    def size(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=True,
        )

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def button(self, name: str, within: str = "body") -> WebElement:
        """The last button with this text."""
        return [b for b in self.all(f"{within} button") if b.text == name][-1]

    def keys(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        """A key while another is held."""
        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def focused(self, attribute: str = "id") -> str | None:
        return self.driver.switch_to.active_element.get_attribute(attribute)

    def wait(self, condition: Callable[[], object], seconds: float = 30) -> None:
        wait_for(lambda: bool(condition()), seconds)

    def say(self, text: str) -> None:
        self.one("#prompt").send_keys(text)
        self.one("#send").click()

    def answered(self) -> None:
        """Wait until no answer is being given."""
        self.wait(lambda: self.one("#send").is_displayed())

    def grows(self) -> None:
        """Wait until the last answer has words and gets more."""
        self.wait(lambda: self.answers()[-1:] not in ([], [""]))
        before = self.answers()[-1]
        self.wait(lambda: self.answers()[-1] != before)

    def answers(self) -> list[str]:
        """What is shown of each answer."""
        return [str(body.text) for body in self.all(".answer > .body")]

    def chat(self) -> dict[str, Any]:
        """The open conversation as it is stored."""
        key = "'strata.chat.' + localStorage.getItem('strata.current')"
        found = self.run(f"return localStorage.getItem({key})")
        return dict(json.loads(found))

    def errors(self) -> list[str]:
        """What the console holds against the page, since the last call."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def overflow(self) -> list[str]:
        """What reaches beyond the width of the window, but code and tables, which scroll."""
        return list(
            self.run(
                """
                const wide = (e) => e.getBoundingClientRect().right > innerWidth + 0.5;
                return [...document.body.querySelectorAll("*")]
                  .filter((e) => wide(e) && !e.closest("pre, .table"))
                  .map((e) => e.outerHTML.slice(0, 80));
                """
            )
        )


@contextmanager
def browser(url: str, profile: Path) -> Iterator[Browser]:
    """Skips the test where there is no Chromium or no driver for it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (apt: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        chrome.set_script_timeout(60)
        yield Browser(chrome, url)
    finally:
        chrome.quit()
