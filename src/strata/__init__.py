"""Strata: large language models inside the memory you have."""

from __future__ import annotations

TYPE_CHECKING = False
"""Known to type checkers; the module that has it takes as long to import as all else here."""

if TYPE_CHECKING:
    from typing import Any

    from strata.answers import BeamOutput, Chunk, Output
    from strata.async_llm import AsyncLLM
    from strata.decode import SamplingParams
    from strata.decode.grammar import GrammarError
    from strata.engine.engine import ContextExceeded
    from strata.errors import ArgumentTypeError, OutOfMemoryError, StrataError, UsageError
    from strata.formats import FormatError
    from strata.hub.downloads import DownloadError, ModelNotFound
    from strata.llm import LLM
    from strata.plan import BudgetTooSmall
    from strata.text import ChatTemplateError

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "ArgumentTypeError",
    "AsyncLLM",
    "BeamOutput",
    "BudgetTooSmall",
    "ChatTemplateError",
    "Chunk",
    "ContextExceeded",
    "DownloadError",
    "FormatError",
    "GrammarError",
    "ModelNotFound",
    "OutOfMemoryError",
    "Output",
    "SamplingParams",
    "StrataError",
    "UsageError",
    "__version__",
]

# The rooms behind these names bring numpy along: they are entered when a name is first used, so
# that `import strata` and the command line's help stay quick.
_HOMES = {
    "ArgumentTypeError": "strata.errors",
    "AsyncLLM": "strata.async_llm",
    "BeamOutput": "strata.answers",
    "BudgetTooSmall": "strata.plan",
    "ChatTemplateError": "strata.text",
    "ContextExceeded": "strata.engine.engine",
    "DownloadError": "strata.hub.downloads",
    "FormatError": "strata.formats",
    "GrammarError": "strata.decode.grammar",
    "LLM": "strata.llm",
    "ModelNotFound": "strata.hub.downloads",
    "OutOfMemoryError": "strata.errors",
    "Chunk": "strata.answers",
    "Output": "strata.answers",
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
