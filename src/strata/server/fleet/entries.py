"""The names that a server of several models answers to, and what each stands for."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from strata.decode import SamplingParams
from strata.errors import StrataError, UsageError
from strata.formats.errors import shown
from strata.hub.downloads import strata_home
from strata.hub.references import LocalPath, parse
from strata.records import dataclass

NAME = re.compile(r"[\w][\w./:@+-]{0,199}")

_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "max_tokens", "stop", "seed"),
)
_OLLAMA = {"repeat_penalty": "repetition_penalty", "num_predict": "max_tokens"}
_GO = re.compile(r"\{\{-?\s*(?:\.|if |range |end|else|template |block |\$)")
_MOST_BYTES = 4 << 20
_MOST_MADE = 256
"""Names that requests make and that are kept, all together."""

_MOST_TEXTS = 2 << 20
"""Characters of all that is kept of them, texts above all."""

_MOST_TOLD = 400
"""Characters of what is wrong with a value or with TOML."""

_LONGEST_TEXT = 64 << 10
_STOPS = 64
_LONGEST_STOP = 1024
"""As of a request's own."""

Origin = Literal["given", "folder", "file", "created", "pulled"]


@dataclass(frozen=True)
class Entry:
    """A model as it is served under ``name``: what it is loaded from (``model``, a reference), with
    how much, and what holds where a request says nothing. ``keep_alive_s`` None is the server's,
    negative for ever."""

    name: str
    model: str
    aliases: tuple[str, ...] = ()
    context: int | None = None
    parallel: int | None = None
    threads: int | None = None
    kv_type: str | None = None
    draft: str | None = None
    keep_alive_s: float | None = None
    system: str | None = None
    template: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = "given"

    @property
    def names(self) -> tuple[str, ...]:
        """All names, its own first."""
        return (self.name, *self.aliases)

    @property
    def own(self) -> bool:
        """Whether it was made by a request, and so may be unmade by one."""
        return self.origin in ("created", "pulled")


def entry_of(name: str, said: Mapping[str, Any], origin: Origin, where: str) -> Entry:
    """An Entry of what a file or a request says. UsageError, which says ``where``, for what is
    unknown or makes no sense."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{where}: {shown(name)} is no name for a model: letters, digits and ._:/-"
        )
    known = {f.name for f in fields(Entry)} - {"name", "origin", "keep_alive_s"} | {"keep_alive"}
    if unknown := sorted(set(said) - known):
        raise UsageError(
            f"{where}: {name} has {shown(unknown[0])}, which is none of {_list(known)}"
        )
    values = dict(said)
    if not isinstance(values.get("model"), str) or not values["model"]:
        raise UsageError(f"{where}: {name} has no model: a name, a file, a folder or a repository")
    for key, kind in (("context", int), ("parallel", int), ("threads", int)):
        value = values.get(key)
        if value is not None and (type(value) is not kind or not 1 <= value <= 1 << 24):
            raise UsageError(
                f"{where}: {key} of {name} is {shown(value)}, which is no number for it"
            )
    for key in ("system", "template", "kv_type", "draft"):
        if not isinstance(values.get(key, ""), str | None):
            raise UsageError(f"{where}: {key} of {name} is no text")
    aliases = values.pop("aliases", ())
    if not isinstance(aliases, list | tuple) or not all(
        isinstance(a, str) and NAME.fullmatch(a) for a in aliases
    ):
        raise UsageError(f"{where}: aliases of {name} are a list of names")
    if (template := values.get("template")) and _GO.search(template):
        raise UsageError(
            f"{where}: the template of {name} is one of Go's; templates are Jinja's here, as "
            "models have them. Leave it out to have the model's own"
        )
    if "keep_alive" in values:
        values["keep_alive_s"] = _seconds(values.pop("keep_alive"), where)
    sampling = checked_sampling(values.pop("sampling", {}), f"{where}: {name}")
    return Entry(name, aliases=tuple(aliases), sampling=sampling, origin=origin, **values)


def checked_texts(*texts: str | None) -> None:
    """UsageError for texts of a request that are too long to be kept: a model that is served with
    them has them in every request."""
    for text in texts:
        if text is not None and len(text) > _LONGEST_TEXT:
            raise UsageError(
                f"a system prompt or template of {len(text)} characters is too long to be kept; "
                f"at most {_LONGEST_TEXT} are"
            )


def checked_sampling(said: Any, where: str) -> dict[str, Any]:
    """Parameters by our names, of those that Ollama's Modelfile has or our own."""
    if not isinstance(said, Mapping):
        raise UsageError(f"{where}: sampling is a table of parameters")
    found: dict[str, Any] = {_OLLAMA.get(str(k), str(k)): value for k, value in said.items()}
    if unknown := sorted(set(found) - set(_SAMPLING)):
        raise UsageError(
            f"{where}: there is no parameter {shown(unknown[0])}; known: {_list(_SAMPLING)}"
        )
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    stops = found.get("stop", [])
    if not isinstance(stops, list) or len(stops) > _STOPS:
        raise UsageError(f"{where}: stop is a list of {_STOPS} texts at most")
    if any(isinstance(stop, str) and len(stop) > _LONGEST_STOP for stop in stops):
        raise UsageError(f"{where}: a text of stop has more than {_LONGEST_STOP} characters")
    if found.get("max_tokens", 1) in (-1, -2):
        del found["max_tokens"]
    values: dict[str, Any] = {k: tuple(v) if k == "stop" else v for k, v in found.items()}
    try:
        SamplingParams(**values)
    except (UsageError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {str(error)[:_MOST_TOLD]}") from None
    return found


def read_entries(path: Path) -> list[Entry]:
    """What ``path`` has: models in a folder, or tables ``[models.NAME]`` of a TOML file."""
    if path.is_dir():
        return list(_in_folder(path))
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is too large for a file of models")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is no text: --models takes a folder, or a TOML file with [models.NAME] tables"
        ) from None
    tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Wrong TOML is a ValueError, and so is a number of thousands of digits.
        raise UsageError(f"{path} is not TOML: {str(error)[:_MOST_TOLD]}") from None
    if unknown := sorted(set(data) - {"models"}):
        raise UsageError(f"{path} has {shown(unknown[0])}; models are tables [models.NAME]")
    tables = data.get("models", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{path}: models are tables [models.NAME]")
    found = []
    for name, said in tables.items():
        entry = entry_of(name, said, "file", str(path))
        # A relative path is one from the file.
        beside = path.parent / entry.model
        found.append(replace(entry, model=str(beside)) if beside.exists() else entry)
    return found


def _in_folder(folder: Path) -> Iterable[Entry]:
    from strata.hub.repository_files import split_part

    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "config.json").is_file():
            yield Entry(_as_name(path.name), str(path), origin="folder")
        elif path.is_file() and path.suffix.lower() == ".gguf":
            part = split_part(path.name)
            if part is None or part[0] == 1:
                yield Entry(_as_name(path.stem), str(path), origin="folder")


def _as_name(name: str) -> str:
    return re.sub(r"[^\w./:@+-]", "-", name).lstrip("./:@+-") or "model"


def given(reference: str, aliases: tuple[str, ...] = ()) -> Entry:
    """The entry of a model that is named on the command line. Raises as ``parse``."""
    parsed = parse(reference)
    # A path is nobody's business; its last part is a name.
    name = _as_name(parsed.path.stem) if isinstance(parsed, LocalPath) else reference
    return Entry(name, reference, aliases)


class Entries:
    """All of them by name. Those that requests make are kept in a file for later servers; entries
    of ``given`` come before those."""

    def __init__(self, given: Iterable[Entry], saved: Path | None) -> None:
        self._saved = saved
        self._all: dict[str, Entry] = {}
        for entry in given:
            for name in entry.names:
                if self._lookup(name) is not None:
                    raise UsageError(f"two models are called {name}: give one another name")
            self._all[entry.name] = entry
        for entry in self._read():
            if not any(self._lookup(name) for name in entry.names):
                self._all[entry.name] = entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def first(self) -> Entry | None:
        """That of requests which name none."""
        return next(iter(self._all.values()), None)

    def find(self, name: str) -> Entry | None:
        """The entry of a name, with or without Ollama's ``:latest``."""
        return self._lookup(name) or self._lookup(name.removesuffix(":latest"))

    def _lookup(self, name: str) -> Entry | None:
        if name in self._all:
            return self._all[name]
        return next((entry for entry in self._all.values() if name in entry.aliases), None)

    def add(self, entry: Entry) -> None:
        """Add or replace one that a request makes, and keep it. UsageError for a name that others
        have given."""
        there = self._lookup(entry.name)
        if there is not None and not there.own:
            raise UsageError(
                f"{entry.name} was given when the server was started, and no request changes it: "
                "take another name"
            )
        made = [e for e in self._all.values() if e.own and e.name != entry.name] + [entry]
        if len(made) > _MOST_MADE or sum(map(_characters, made)) > _MOST_TEXTS:
            raise UsageError(
                f"there is no room for another name: {_MOST_MADE} are kept that requests make, "
                f"with {_MOST_TEXTS} characters of texts in all; delete one"
            )
        self._all[entry.name] = entry
        self._save()

    def remove(self, entry: Entry) -> None:
        """Forget one that a request made."""
        del self._all[entry.name]
        self._save()

    def _read(self) -> Iterable[Entry]:
        if self._saved is None or not self._saved.is_file():
            return
        try:
            said = json.loads(self._saved.read_text(encoding="utf-8"))
            for each in said["models"]:
                values = dict(each)
                name, origin = values.pop("name"), values.pop("origin")
                keep = values.pop("keep_alive_s", None)
                values = {k: v for k, v in values.items() if v is not None}
                if keep is not None:
                    values["keep_alive"] = keep
                if origin not in ("created", "pulled"):
                    raise ValueError("requests do not make such")
                yield entry_of(name, values, origin, str(self._saved))
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            UsageError,
        ):
            raise StrataError(
                f"{self._saved} cannot be read: delete it, and models that were made over HTTP "
                "are to be made again"
            ) from None

    def _save(self) -> None:
        if self._saved is None:
            return
        kept = [asdict(entry) for entry in self._all.values() if entry.own]
        text = json.dumps({"models": kept}, indent=1)
        try:
            self._saved.parent.mkdir(parents=True, exist_ok=True)
            draft = self._saved.with_name(f"{self._saved.name}.{os.getpid()}")
            draft.write_text(text, encoding="utf-8")
            draft.replace(self._saved)
        except OSError as error:
            raise StrataError(f"{self._saved}: {error.strerror or error}") from None


def _characters(entry: Entry) -> int:
    return len(json.dumps(asdict(entry)))


def saved_path() -> Path:
    """Where entries are kept that requests make."""
    return strata_home() / "models.json"


def _seconds(value: Any, where: str) -> float:
    from strata.server.durations import seconds_of

    try:
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise ValueError("a duration is expected: seconds, or text as '5m'")
        return float(seconds_of(value))
    except ValueError as error:
        raise UsageError(f"{where}: keep_alive: {error}") from None


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
