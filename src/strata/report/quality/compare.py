"""A model on windows of a text: alone, or beside the kept logits of a base."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strata.engine.engine import Engine
from strata.errors import UsageError
from strata.program import Segment
from strata.report.quality.figures import FIGURE_BYTES, TokenFigures
from strata.report.quality.kept_logits import CACHED_BYTES, KeptLogits

Progress = Callable[[int], None]
"""Told of windows that are done."""

LAYER_WINDOWS = 2
"""Windows in which layers are compared."""

_ROW_COPIES = 2 * 4 + 4 * 8
"""Bytes a token of the vocabulary while two rows of logits are compared."""


class Windows:
    """A text cut as llama.cpp's ``perplexity`` tool cuts it, so that figures compare.

    Windows of ``context`` tokens, a rest left out; ``bos``, for models that begin with such a
    token, takes the place of the first token of each. Scored are the tokens after position
    ``first``: ``context // 2`` as there, or 0 with ``whole``. UsageError for a text that is too
    short.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        context: int,
        chunks: int | None = None,
        bos: int | None = None,
        whole: bool = False,
    ) -> None:
        there = len(tokens) // context
        wanted = max(there, 1) if chunks is None else chunks
        if not 1 <= wanted <= there:
            raise UsageError(
                f"{wanted} windows of {context} tokens cannot be scored: the text has "
                f"{len(tokens)} tokens, enough for {there}"
            )
        self.context = context
        self.count = wanted
        self.first = 0 if whole else context // 2
        self.each = context - 1 - self.first
        self._tokens = tokens
        self._bos = bos

    def __getitem__(self, number: int) -> list[int]:
        """The tokens of a window as they are run."""
        window = list(self._tokens[number * self.context : (number + 1) * self.context])
        if self._bos is not None:
            window[0] = self._bos
        return window

    @property
    def digest(self) -> str:
        """Tells these windows from others."""
        found = hashlib.sha256()
        for number in range(self.count):
            found.update(np.array(self[number], "<i4").tobytes())
        return found.hexdigest()


def working_bytes(windows: int, each: int, vocab_size: int) -> int:
    """Bytes that comparing takes beside the model: figures of each token, and rows of logits."""
    return windows * each * FIGURE_BYTES + vocab_size * _ROW_COPIES + 2 * CACHED_BYTES


def keep_logits(
    engine: Engine,
    windows: Windows,
    kept: KeptLogits,
    *,
    offset: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write the base's logits of windows ``offset`` and following, as many as ``kept`` is for, from
    the first on that it does not have."""
    for number in range(kept.complete, kept.of.windows):
        writer = kept.write(number)
        engine.visit_logits(windows[offset + number], windows.first, writer.add)
        writer.done()
        if progress is not None:
            progress(number + 1)


def compare(
    engine: Engine,
    windows: Windows,
    figures: TokenFigures,
    kept: KeptLogits | None,
    *,
    offset: int = 0,
    count: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Enter in ``figures`` what comes of ``count`` windows (all) from ``offset`` on; the logits of
    the first of them are the first of ``kept``. LogitsError, KeptLogitsError."""
    last = windows.count if count is None else offset + count
    for number in range(offset, last):
        window = windows[number]
        base = None if kept is None else kept.rows(number - offset)
        at = windows.first + 1

        def take(rows: NDArray[np.float32]) -> None:
            nonlocal at
            for row in rows:
                figures.add(row, window[at], None if base is None else next(base))  # noqa: B023
                at += 1

        engine.visit_logits(window, windows.first, take)
        if base is not None:
            # Its last step looks at the sum over all of it.
            next(base, None)
        if progress is not None:
            progress(figures.complete)


class LayerOutputs:
    """What a base's Segments gave, on the disk, and how far those of other models are from it.

    Rows are float32 and lie in a file without a name.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, prefix="layers-")  # noqa: SIM115
        self._places: dict[tuple[int, str], int] = {}
        self._end = 0

    @property
    def there(self) -> bool:
        """Whether a base's are there."""
        return self._end > 0

    def keep(self, engine: Engine, windows: Windows) -> None:
        """Write what each Segment gives in the first windows."""

        def put(number: int, name: str, past: int, rows: NDArray[np.float32]) -> None:
            row = 4 * rows.shape[1]
            if (number, name) not in self._places:
                self._places[number, name] = self._end
                self._end += windows.context * row
            self._file.seek(self._places[number, name] + past * row)
            self._file.write(np.ascontiguousarray(rows, "<f4").tobytes())

        self._visit(engine, windows, put)

    def errors(self, engine: Engine, windows: Windows) -> list[tuple[str, float]]:
        """Of each Segment but the last, in order: the norm of what it gives less what the base's
        gave, over the norm of that, of all rows together. UsageError for a model of other layers.
        """
        apart: dict[str, float] = {}
        whole: dict[str, float] = {}

        def look(number: int, name: str, past: int, rows: NDArray[np.float32]) -> None:
            if (number, name) not in self._places:
                raise UsageError(f"--layers: the base has no layer '{name}': leave --layers out")
            self._file.seek(self._places[number, name] + past * 4 * rows.shape[1])
            base = np.frombuffer(self._file.read(4 * rows.size), "<f4").astype(np.float64)
            if base.size != rows.size:
                raise UsageError(
                    f"--layers: layer '{name}' has another width than the base's: leave --layers "
                    "out"
                )
            whole[name] = whole.get(name, 0.0) + float(base @ base)
            base -= rows.reshape(-1)
            apart[name] = apart.get(name, 0.0) + float(base @ base)

        self._visit(engine, windows, look)
        return [(name, (apart[name] / (whole[name] or 1.0)) ** 0.5) for name in apart]

    @staticmethod
    def _visit(
        engine: Engine,
        windows: Windows,
        take: Callable[[int, str, int, NDArray[np.float32]], None],
    ) -> None:
        for number in range(min(LAYER_WINDOWS, windows.count)):
            past: dict[str, int] = {}

            def border(segment: Segment, given: Mapping[str, NDArray[np.float32]]) -> None:
                for rows in given.values():
                    name = segment.name
                    take(number, name, past.get(name, 0), rows)  # noqa: B023
                    past[name] = past.get(name, 0) + len(rows)  # noqa: B023

            # Of logits one row, since there has to be some.
            engine.visit_logits(windows[number], windows.context - 2, lambda rows: None, border)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
