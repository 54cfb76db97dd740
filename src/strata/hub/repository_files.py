"""Which files of a repository make up the model somebody asked for. Pure: names and sizes in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from strata.hub.downloads import DownloadError, ModelNotFound
from strata.records import dataclass
from strata.sizes import format_size

# What somebody most likely wants who names no quantisation: small, with little loss of quality.
_PREFERRED = (
    *("Q4_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q8_0", "Q6_K", "Q4_1", "Q5_K_S", "Q5_0", "Q5_1"),
    *("IQ4_XS", "IQ4_NL", "MXFP4", "NVFP4", "Q3_K_M", "Q3_K_L", "Q3_K_S", "BF16", "F16"),
)

# Longest alternatives first: a tag is Q4_K_M, never the Q4_K at its front.
_TAG = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?(?:I?Q\d(?:_(?:XXS|XS|XL|NL|[KSML]|\d))+|TQ[12]_0|BF16|FP?16|FP?32"
    r"|MXFP4(?:_MOE)?|NVFP4)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# Vision towers and calibration data are GGUF files too, but not the model.
_NOT_A_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)

_INDEX = "model.safetensors.index.json"
_SIDE_FILES = frozenset(
    (
        *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", _INDEX),
        *("added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt"),
    )
)


@dataclass(frozen=True)
class GgufSet:
    """One model in GGUF: a single file, or all parts of a split one in order. Sizes in bytes."""

    files: tuple[str, ...]
    size: int

    @property
    def quant(self) -> str | None:
        """The quantisation its name tells, such as ``Q4_K_M``; None if it tells none."""
        return quant_tag(self.files[0])


def quant_tag(name: str) -> str | None:
    """The quantisation in a file's name, else in its folders' names, in upper case."""
    for piece in reversed(PurePosixPath(name).parts):
        tags = _TAG.findall(_PART.sub("", piece))
        if tags:
            # Some write the float formats as FP16 and FP32.
            return re.sub(r"^FP", "F", str(tags[-1]).upper())
    return None


def split_part(name: str) -> tuple[int, int] | None:
    """``(part, parts)``, counted from 1, of a file named like ``-00001-of-00003.gguf``."""
    match = _PART.search(name)
    return (int(match[1]), int(match[2])) if match else None


def part_name(name: str, part: int) -> str:
    """The name of another part of the split file ``name``."""
    return _PART.sub(lambda match: f"-{part:05d}-of-{match[2]}{name[-5:]}", name)


def refuse_unsafe(names: Iterable[str]) -> None:
    """Raise DownloadError for a name that could be written outside of its own folder."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00-\x1f]", name):
            raise DownloadError(
                f"the repository holds a file with the unsafe name {name!r}; nothing was downloaded"
            )


def gguf_sets(sizes: Mapping[str, int]) -> list[GgufSet]:
    """Every complete GGUF model among ``sizes`` (name -> bytes), by name."""
    sets = []
    for name in sorted(sizes):
        if not name.lower().endswith(".gguf") or _NOT_A_MODEL.search(PurePosixPath(name).name):
            continue
        part = split_part(name)
        if part is None:
            sets.append(GgufSet((name,), sizes[name]))
        elif part[0] == 1:
            names = tuple(part_name(name, number) for number in range(1, part[1] + 1))
            if all(piece in sizes for piece in names):
                sets.append(GgufSet(names, sum(sizes[piece] for piece in names)))
    return sets


def choose_gguf(sets: list[GgufSet], quant: str | None, repo: str) -> GgufSet:
    """The set that ``quant`` names (any case, whole tags only), or the usual choice without one.

    Raises ModelNotFound, listing what there is with sizes, when no set or more than one fits.
    """
    if quant is None:
        for wanted in _PREFERRED:
            fitting = [candidate for candidate in sets if candidate.quant == wanted]
            if fitting:
                return _only(fitting, sets, wanted, repo)
        return min(sets, key=lambda candidate: candidate.size)
    wanted = quant.upper()
    # A tag this table does not know must at least stand alone in the name.
    whole = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    fitting = (
        [candidate for candidate in sets if candidate.quant == wanted]
        or [candidate for candidate in sets if candidate.quant == f"UD-{wanted}"]
        or [
            candidate
            for candidate in sets
            if candidate.quant is None and whole.search(_PART.sub("", candidate.files[0]))
        ]
    )
    if not fitting:
        raise ModelNotFound(f"{repo} has no GGUF called {quant}; there is {describe_sets(sets)}")
    return _only(fitting, sets, quant, repo)


def choose_gguf_file(sets: list[GgufSet], file: str, repo: str) -> GgufSet:
    """The set that has ``file`` as its file or as any of its parts; ModelNotFound without one."""
    for candidate in sets:
        if file in candidate.files:
            return candidate
    raise ModelNotFound(f"{repo} has no model file {file}; there is {describe_sets(sets)}")


def _only(fitting: list[GgufSet], sets: list[GgufSet], quant: str, repo: str) -> GgufSet:
    if len(fitting) == 1:
        return fitting[0]
    raise ModelNotFound(
        f"{repo} has several GGUF files called {quant}: {describe_sets(fitting)}; "
        f"name one as {repo}/{fitting[0].files[0]}"
    )


def describe_sets(sets: list[GgufSet]) -> str:
    """The sets in one line, by growing size, for an error message."""
    ordered = sorted(sets, key=lambda candidate: candidate.size)
    tags = [candidate.quant for candidate in ordered]
    names = [
        tag if tag is not None and tags.count(tag) == 1 else candidate.files[0]
        for tag, candidate in zip(tags, ordered, strict=True)
    ]
    return (
        ", ".join(
            f"{name} ({format_size(candidate.size)})"
            for name, candidate in zip(names, ordered, strict=True)
        )
        or "none"
    )


def needs_index(names: Iterable[str]) -> str | None:
    """The index file that has to be read before ``choose_safetensors``, if there is one."""
    return _INDEX if _INDEX in set(names) else None


def choose_safetensors(names: Iterable[str], indexed: Iterable[str] | None) -> list[str] | None:
    """The files of a Hugging Face model directory, or None when ``names`` holds no such model.

    ``indexed`` are the shards that the index names (None without an index). Copies of the weights
    in other formats (.bin, .pth, ONNX, ``consolidated*``) and everything in sub-folders stay out.
    Raises ModelNotFound when a shard of the index is missing.
    """
    present = set(names)
    if "config.json" not in present:
        return None
    if indexed is not None:
        weights = set(indexed)
        if missing := sorted(weights - present):
            raise ModelNotFound(f"the shard {missing[0]} that {_INDEX} names is missing")
    elif "model.safetensors" in present:
        weights = {"model.safetensors"}
    else:
        weights = {
            name
            for name in present
            if name.endswith(".safetensors")
            and "/" not in name
            and not name.startswith(("consolidated", "adapter_"))
        }
    return sorted(weights | (present & _SIDE_FILES)) if weights else None
