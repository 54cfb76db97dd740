"""Markdown of answers becomes elements: right, as it grows, and harmless."""

from __future__ import annotations

import pytest

from support.browser import Browser

pytestmark = [pytest.mark.slow, pytest.mark.alone]

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
    "| a | b |\n|---|--:|\n| 1 | 2\\|3 |": '<div class="table" tabindex="0"><table><thead><tr>'
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


def test_hostile_markdown_ends(page: Browser) -> None:
    """Each takes milliseconds; in quadratic time it would pass what the browser gives a script."""
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
        let nodes = 0;
        for (const text of texts) {
          const made = document.createElement("div");
          render(made, text);
          nodes = Math.max(nodes, made.getElementsByTagName("*").length);
        }
        return nodes;
    """
    page.open()
    assert 0 < page.rendering(script, texts) <= 2 * size
