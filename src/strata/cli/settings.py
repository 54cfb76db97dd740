"""Values of options that are not on the command line: from the environment and from a file.

``--max-tokens`` of ``strata run`` is ``STRATA_RUN_MAX_TOKENS``, or ``STRATA_MAX_TOKENS`` for every
verb that has it; in ``config.toml`` it is ``max_tokens`` or ``max-tokens`` in the table ``[run]``,
or above all tables. The command line comes first, then the environment, then the file; what is for
one verb comes before what is for all.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from strata.errors import UsageError

# Names that are variables of their own, and options that mean other things in other verbs.
_OWN = frozenset({"home", "isa", "debug", "api_key", "config"})
_OF_ONE_VERB = frozenset({"prompt", "file", "text", "help", "yes", "refresh", "verify"})
_MOST_BYTES = 1 << 20
_SHOWN = 100
"""Characters of a name that is wrong."""
_LONGEST = 4096
"""Characters of a value that is no text for the model, as of a path."""


def config_path() -> Path:
    """``$STRATA_CONFIG``, else ``strata/config.toml`` in the user's folder for settings."""
    if given := os.environ.get("STRATA_CONFIG"):
        return Path(given).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path.home() / ".config"
    return root / "strata" / "config.toml"


def defaults(
    verb: str, params: Iterable[click.Parameter], others: Callable[[], Mapping[str, set[str]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values for ``params`` of ``verb`` by the names that click knows, and where each was said.

    ``others`` gives the options of every verb, for a file that names some. UsageError for a file
    that cannot be read, or names what no verb has.
    """
    named = option_names(params)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    path = config_path()
    for table, key, value in _entries(path, verb, named, others):
        values[named[key].name or key] = _checked(path, key, value, named[key])
        origins[named[key].name or key] = f"{key} in {table}{path}"
    for name, option in named.items():
        for variable in _variables(verb, name):
            if (text := os.environ.get(variable)) is not None:
                values[option.name or name] = [text] if option.multiple else text
                origins[option.name or name] = variable
    return values, origins


def option_names(params: Iterable[click.Parameter]) -> dict[str, click.Option]:
    """Options by their long names, ``max_tokens`` for ``--max-tokens``."""
    return {
        opt.removeprefix("--").replace("-", "_"): param
        for param in params
        if isinstance(param, click.Option)
        for opt in param.opts
        if opt.startswith("--")
    }


def _variables(verb: str, name: str) -> list[str]:
    """The later ones come first."""
    own = f"STRATA_{verb.upper()}_{name.upper()}"
    return [own] if name in _OF_ONE_VERB | _OWN else [f"STRATA_{name.upper()}", own]


def _entries(
    path: Path,
    verb: str,
    named: Mapping[str, click.Option],
    others: Callable[[], Mapping[str, set[str]]],
) -> Iterable[tuple[str, str, Any]]:
    """Table, key and value of what a file says for a verb, what is for all verbs first."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is too large for a file of settings")
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if "STRATA_CONFIG" in os.environ:
            raise UsageError(f"there is no file {path}, which STRATA_CONFIG names") from None
        return
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    data = _with_underscores(_parsed(path, text))
    known = {verb: set(named)}
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    shared = {key: value for key, value in data.items() if not isinstance(value, dict)}
    if set(shared) - known[verb] or set(tables) - {verb}:
        known = {**others(), **known}
    for key, value in shared.items():
        if not any(key in names for names in known.values()):
            raise UsageError(_unknown(path, key, set().union(*known.values())))
        if key in named and key not in _OF_ONE_VERB:
            yield "", key, value
    for table, entries in tables.items():
        if table not in known:
            raise UsageError(_unknown(path, f"[{table}]", {f"[{name}]" for name in known}))
        for key, value in entries.items():
            if key not in known[table]:
                raise UsageError(_unknown(path, key, known[table]))
            if table == verb:
                yield f"[{table}] of ", key, value


def _with_underscores(table: Mapping[str, Any]) -> dict[str, Any]:
    """Names may also be written as on the command line, ``max-tokens``."""
    return {
        key.replace("-", "_"): _with_underscores(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _parsed(path: Path, text: str) -> dict[str, Any]:
    tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return dict(tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        # Wrong TOML is a ValueError, and so is a number of thousands of digits.
        raise UsageError(f"{path} is not TOML: {error}") from None


def _checked(path: Path, key: str, value: Any, option: click.Option) -> Any:
    """A value that may be one of an option: click takes texts and numbers, or a list of them."""
    each = value if option.multiple and isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in each):
        many = "texts or numbers in a list" if option.multiple else "one text or number"
        raise UsageError(f"{path}: {key} is {many}")
    if any(isinstance(one, float) and not math.isfinite(one) for one in each):
        raise UsageError(f"{path}: {key} is a number that is finite")
    plain = isinstance(option.type, click.types.StringParamType)
    if not plain and any(isinstance(one, str) and len(one) > _LONGEST for one in each):
        raise UsageError(f"{path}: {key} has {_LONGEST} characters at most")
    return value


def _unknown(path: Path, key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    kind = "command" if key.startswith("[") else "option"
    return f"{path} sets {key[:_SHOWN]}, but there is no such {kind}{hint}"
