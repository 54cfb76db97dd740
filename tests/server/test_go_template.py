"""Templates of Ollama's generate: what they say, and what is not understood."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

from strata.errors import UsageError
from strata.server.ollama.go_template import filled

CHATML = """{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}<|im_start|>user
{{ .Prompt }}<|im_end|>
<|im_start|>assistant
{{ .Response }}<|im_end|>
"""


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        ("{{ .System }} {{.Prompt}}!", "S", "S P!"),
        (
            CHATML,
            "S",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (CHATML, "", "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n"),
        ("{{ if .System }}a{{ else }}b{{ end }}", "", "b"),
        ("{{ if .System }}{{ if .Suffix }}x{{ end }}a{{ else }}b{{ end }}", "S", "a"),
        ("a \n{{- .Prompt -}} \n b", "", "aPb"),
        ("{{/* said by nobody */}}{{ .Prompt }}", "", "P"),
        ("none", "", "none"),
    ],
)
def test_a_template_is_filled(template: str, system: str, expected: str) -> None:
    values = {"System": system, "Prompt": "P", "Suffix": ""}
    assert filled(template, values) == expected


@pytest.mark.parametrize(
    "template",
    ["{{ range .Messages }}{{ end }}", "{{ .Foo }}", "{{ if .System }}", "{{ end }}", "x" * 99_999],
)
def test_what_is_not_understood_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="template"):
        filled(template, {"Prompt": "P"})
