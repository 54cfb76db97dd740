"""Strata: large language models inside the memory you have."""

from __future__ import annotations

TYPE_CHECKING = False
"""Known to type checkers; the module that has it takes as long to import as all else here."""

if TYPE_CHECKING:
    from typing import Any

    from strata.decode import SamplingParams
    from strata.errors import StrataError, UsageError
    from strata.llm import LLM, Chunk, Output

__version__ = "0.1.0"

__all__ = ["LLM", "Chunk", "Output", "SamplingParams", "StrataError", "UsageError", "__version__"]

# The rooms behind these names bring numpy along: they are entered when a name is first used, so
# that `import strata` and the command line's help stay quick.
_HOMES = {
    "LLM": "strata.llm",
    "Chunk": "strata.llm",
    "Output": "strata.llm",
    "SamplingParams": "strata.decode",
    "StrataError": "strata.errors",
    "UsageError": "strata.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
