"""The part of Go's templates that prompts of one turn are written in, for ``template`` of
``/api/generate``: ``{{ .System }}``, ``{{ .Prompt }}``, ``{{ .Suffix }}``, ``{{ .Response }}``, and
``{{ if .System }}...{{ else }}...{{ end }}``.

Format: https://github.com/ollama/ollama/blob/main/docs/template.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from strata.errors import UsageError

_MOST_CHARACTERS = 64 << 10
_ACTION = re.compile(r"\{\{(-?)([^{}]*?)(-?)\}\}")
_FIELDS = ("System", "Prompt", "Suffix", "Response")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The prompt: all up to ``.Response``, or all. UsageError for what is not understood."""
    if len(template) > _MOST_CHARACTERS:
        raise UsageError(f"a template may have {_MOST_CHARACTERS} characters")
    parts: list[str] = []
    # Whether what comes is in the prompt, for each `if` around it; whether its `else` has come.
    open_: list[tuple[bool, bool]] = []
    at, trimmed = 0, False
    for found in _ACTION.finditer(template):
        trims, action, trims_after = found[1], found[2].strip(), found[3]
        text = template[at : found.start()]
        text = text.lstrip() if trimmed else text
        if _shown(open_):
            parts.append(text.rstrip() if trims else text)
        at, trimmed = found.end(), bool(trims_after)
        name = action.removeprefix(".")
        if action == "end" and open_:
            open_.pop()
        elif action == "else" and open_ and not open_[-1][1]:
            open_[-1] = (not open_[-1][0], True)
        elif (asked := re.fullmatch(r"if\s+\.(\w+)", action)) and asked[1] in _FIELDS:
            open_.append((bool(values.get(asked[1])), False))
        elif action.startswith(".") and name in _FIELDS:
            if _shown(open_):
                if name == "Response":
                    return "".join(parts)
                parts.append(values.get(name, ""))
        elif not action.startswith("/*"):
            raise UsageError(
                f"template: {{{{ {action[:80]} }}}} is not understood; known are "
                f"{', '.join(f'.{field}' for field in _FIELDS)}, if, else and end"
            )
    if open_:
        raise UsageError("template: an if has no end")
    rest = template[at:]
    return "".join(parts) + (rest.lstrip() if trimmed else rest)


def _shown(open_: list[tuple[bool, bool]]) -> bool:
    return all(shown for shown, _ in open_)
