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

DONE = '<input type="checkbox" disabled="" checked="" aria-label="done">'
TO_DO = '<input type="checkbox" disabled="" aria-label="to do">'
HTML |= {
    "- [x] a\n- [ ] *b*": f'<ul><li class="task">{DONE}a</li><li class="task">{TO_DO}<em>b</em>'
    "</li></ul>",
    "$x_1$ and \\(y\\)": "<p><math><msub><mi>x</mi><mn>1</mn></msub></math> and "
    "<math><mi>y</mi></math></p>",
    "costs $5, or $10, not $ 7$": "<p>costs $5, or $10, not $ 7$</p>",
    r"\$a$ and \(b": "<p>$a$ and (b</p>",
    "`$a$`": "<p><code>$a$</code></p>",
    "$$\n\\frac{a}2\n$$": '<div class="formula" tabindex="0"><math display="block"><mfrac>'
    "<mi>a</mi><mn>2</mn></mfrac></math></div>",
    r"so \[\sum_{i}^n\]": '<p>so <math display="block"><munderover><mo movablelimits="false">∑</mo>'
    "<mi>i</mi><mi>n</mi></munderover></math></p>",
    r"$\mathbb{R}\text{ if }\odd$": "<p><math><mi>ℝ</mi><mtext>\xa0if\xa0</mtext>"
    r"<mtext>\odd</mtext></math></p>".replace("\xa0", "&nbsp;"),
    r"$\left(\sqrt[3]{x}\right.$": '<p><math><mrow><mo stretchy="true" fence="true">(</mo><mroot>'
    "<mi>x</mi><mrow><mn>3</mn></mrow></mroot></mrow></math></p>",
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
    text += "| a | b |\n|--|--|\n| 1 | 2 |\n\n$$\na^2\n$$\n- [x] c $d$\n\nend\n"
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


CODE = {
    "python": "def f(a):  # b\n    return 'c' + 1.5",
    "sql": "select a -- b",
    "diff": "-a\n+b\n c",
    "unheard-of": "def f",
}
COLOURED = {
    "python": [
        *(("word", "def"), ("comment", "# b"), ("word", "return"), ("string", "'c'")),
        ("number", "1.5"),
    ],
    "sql": [("word", "select"), ("comment", "-- b")],
    "diff": [("removed", "-a\n"), ("string", "+b\n")],
    "unheard-of": [],
}


def test_code_is_coloured(page: Browser) -> None:
    page.open()
    script = """
        return texts.map((text) => {
          const node = document.createElement("div");
          render(node, text);
          const code = node.querySelector("code");
          const spans = [...code.querySelectorAll("span")];
          return [code.textContent, spans.map((s) => [s.className.slice(5), s.textContent])];
        });
    """
    texts = [f"```{language}\n{code}\n```" for language, code in CODE.items()]
    for language, (text, spans) in zip(CODE, page.rendering(script, texts), strict=True):
        assert text == CODE[language]
        assert [tuple(span) for span in spans] == COLOURED[language]


def test_hostile_markdown_ends(page: Browser) -> None:
    """Each takes milliseconds; in quadratic time it would pass what the browser gives a script."""
    size = 50_000
    texts = [
        part * (size // len(part))
        for part in (
            *("*", "_", "~", "`", "[", "]", "(", "![", "> ", "- ", "#", "|", "\\", "*a ", "**a*"),
            *("_a", "[a](", "[a](b", "`a``", "https://", "- - ", "| - ", "1. ", "a|\n-|\n"),
            *("```\n", "<a b", "> - "),
            *("$", "$a ", "$a", "$$a", "\\(", "\\[", "\\[\n", "$$\na\n", "$a$1", "\\(a"),
            *("$\\sqrt", "$" + "{" * 1500 + "$", "$" + "\\frac" * 300 + "$", "```c\n/*'\"#a 1"),
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
