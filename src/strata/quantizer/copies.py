"""A float model run in smaller types: the file that `strata quantize` would write, kept."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from strata.errors import UsageError
from strata.formats import open_model
from strata.hub.downloads import exclusive, strata_home
from strata.quantizer.mixes import FLOATS, Facts, choose_types, find_mix, is_quantised
from strata.quantizer.opening import as_gguf, source_of
from strata.quantizer.quantise import quantise

Progress = Callable[[str, int, int | None], None]


def quantised_copy(
    path: Path,
    mix: str,
    *,
    memory: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """The model at ``path`` in the types of a mix, in Strata's own folder; written at the first
    call, the same bytes as `quantize --type` gives.

    Raises UsageError for a model that is quantised already, or what `quantise` raises.
    """
    chosen = find_mix(mix)
    folder = strata_home() / "quantised"
    with open_model(path) as opened:
        source = source_of(as_gguf(opened))
        shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
        lossy = {t.type.name for t in source.tensors.values() if is_quantised(t.name, t.shape)}
        if lossy - {*FLOATS, "F64"}:
            raise UsageError(f"{path} is quantised already; --quantize is for float models")
        digest = sha256(f"{source.identity} {path.resolve()} {chosen.name}".encode()).hexdigest()
        out = folder / f"{path.stem}-{chosen.name}-{digest[:16]}.gguf"
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            if not out.exists():
                facts = Facts.of(source.keys, list(shapes), importance=False)
                quantise(
                    source,
                    out,
                    choose_types(chosen, facts, shapes),
                    file_type=chosen.number,
                    memory=memory,
                    threads=threads,
                    progress=progress,
                )
    return out
