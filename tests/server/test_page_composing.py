"""What goes into a message and what can be done with its answer: files, Continue, the context."""

from __future__ import annotations

import json

import pytest

from strata import LLM, SamplingParams
from support.browser import Browser, Keys

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SHORT = {"temperature": "0", "max_tokens": "6"}

DROP = """
    const data = new DataTransfer();
    data.items.add(new File(["a = '```'\\n"], "some.py"));
    data.items.add(new File(["b"], "other.txt"));
    data.items.add(new File([new Uint8Array([0, 255])], "picture.png"));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
"""


def test_files_go_along_as_text(page: Browser) -> None:
    page.open(SHORT)
    page.run(DROP)
    page.wait(lambda: len(page.all("#attached li")) == 2)
    assert "picture.png" in page.text("#attached-note")
    page.one("#attached button[aria-label='Remove other.txt']").click()
    page.say("What is it?")
    page.answered()
    assert not page.one("#attached").is_displayed()
    text = page.chat()["nodes"]["1"]["text"]
    assert text == "some.py:\n````\na = '```'\n````\n\nWhat is it?"


def test_an_answer_is_gone_on_with(page: Browser, llm: LLM) -> None:
    question = "Name three rivers."
    whole = llm.chat([{"role": "user", "content": question}], SamplingParams(max_tokens=12)).text
    page.open(SHORT)
    page.say(question)
    page.answered()
    begun = page.chat()["nodes"]["2"]["text"]
    assert whole.startswith(begun)
    page.button("Continue").click()
    page.wait(lambda: page.chat()["nodes"]["2"]["text"] != begun)
    page.answered()
    assert page.chat()["nodes"]["2"]["text"] == whole
    assert "of 1" in page.text("#context-text")
    page.say("And three more.")
    page.answered()
    shown = [b.is_displayed() for b in page.all(".answer button") if b.text == "Continue"]
    assert shown in ([True], [])


def test_the_same_from_a_program(page: Browser) -> None:
    page.open({"system": "It's brief.", "min_p": "0.1", "stop": "END\n\nFIN"})
    page.one("#open-settings").click()
    page.one("#open-code").click()
    page.wait(lambda: page.all("#code-text code"))
    written = page.text("#code-text code")
    assert f"curl {page.url}/v1/chat/completions" in written
    body = written.partition("-d '")[2].removesuffix("'").replace("'\\''", "'")
    sent = json.loads(body)
    assert sent["messages"][0] == {"role": "system", "content": "It's brief."}
    assert (sent["min_p"], sent["stop"]) == (0.1, ["END", "FIN"])
    for kind, words in (("Python", 'extra_body={"top_k"'), ("Ollama", "from ollama import Client")):
        script = "const k = document.querySelector('#code-kind'); k.value = arguments[0];"
        page.run(script + "k.dispatchEvent(new Event('change'))", kind)
        assert words in page.text("#code-text code")
        compile(page.text("#code-text code"), kind, "exec")


def test_the_machine_is_folded(page: Browser) -> None:
    page.open()
    assert page.one("#machine").is_displayed()
    page.one("#open-settings").click()
    page.run("document.querySelector('#show-machine').click()")
    assert not page.one("#machine").is_displayed()
    page.driver.refresh()
    page.wait(lambda: page.text("#connection") == "connected")
    assert not page.one("#machine").is_displayed()


def test_a_full_context_is_no_dead_end(page: Browser) -> None:
    page.open(SHORT)
    for _ in range(2):
        page.run("document.querySelector('#prompt').value = arguments[0]", "word " * 700)
        page.keys(Keys.ENTER)
        page.answered()
    assert page.chat()["nodes"]["4"]["end"]["kind"] in ("done", "length")
    assert "are left out, the oldest." in page.all(".answer .note")[-1].text
