"""What can be ordered in a chat, and settings that change in it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.decode import SamplingParams

HELP = """\
/set NAME VALUE  change a setting: system, temperature, top_k, top_p, min_p, seed, max_tokens,
                 stop, repetition_penalty, frequency_penalty, presence_penalty, stats
/set             show the settings
/clear           forget the conversation
/save FILE       keep the conversation in a file
/load FILE       go on with the one in a file
/bye             leave (also /exit, /quit, Ctrl-D)
/help            show this
Ctrl-C stops an answer. A text of several lines is pasted, or put between \"\"\" and \"\"\"."""

SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "max_tokens",
    "stop",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)

_OTHER_NAMES = {
    "temp": "temperature",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}

_WHOLE = ("top_k", "seed", "max_tokens")
_ROLES = ("system", "user", "assistant")
_MOST_BYTES = 64 << 20


def changed(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """``params`` with one of SETTINGS changed; ``off`` is its default. UsageError for what is no
    setting, and for a value that is none of it."""
    name = name.replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name not in SETTINGS:
        raise UsageError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
    if value in ("off", "none", "default"):
        return replace(params, **{name: _default(params, name)})
    if name == "stop":
        return replace(params, stop=value)
    try:
        number: Any = int(value) if name in _WHOLE else float(value)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(f"{name} is {kind} or off, not {value!r}") from None
    return replace(params, **{name: number})


def shown(params: SamplingParams) -> dict[str, str]:
    """The settings and their values."""
    return {name: _text(getattr(params, name)) for name in SETTINGS}


def write_conversation(path: Path, messages: list[dict[str, str]]) -> None:
    """Keep ``messages`` in a JSON file. UsageError if ``path`` is another kind of file."""
    if path.exists():
        try:
            read_conversation(path)
        except UsageError:
            raise UsageError(
                f"{path} is there and holds no conversation; it was left alone"
            ) from None
    text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def read_conversation(path: Path) -> list[dict[str, str]]:
    """The messages in a file that ``write_conversation`` wrote; UsageError if it holds none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is too large for a conversation")
        found = json.loads(path.read_text(encoding="utf-8"))["messages"]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path} holds no conversation that /save wrote") from None
    if not isinstance(found, list) or not all(_is_message(message) for message in found):
        raise UsageError(f"{path} holds no conversation that /save wrote")
    return [{"role": message["role"], "content": message["content"]} for message in found]


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and isinstance(message.get("content"), str)
    )


def _default(params: SamplingParams, name: str) -> Any:
    return next(field.default for field in fields(params) if field.name == name)


def _text(value: object) -> str:
    if value is None or value == ():
        return "off"
    return str(value[0]) if isinstance(value, tuple) and len(value) == 1 else str(value)
