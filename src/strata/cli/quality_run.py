"""The run behind ``strata quality``: models one after the other, each alone in memory."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from strata.backends.registry import DEFAULT
from strata.cli.console import progress_bars, remark
from strata.cli.engine_options import open_llm, read_text
from strata.engine.texts import TextWorkload, encoded, most_tokens
from strata.errors import StrataError, UsageError
from strata.formats import open_model
from strata.formats.fingerprint import fingerprint
from strata.hub.digests import FileDigests
from strata.hub.downloads import strata_home
from strata.hub.references import resolve
from strata.models import build_model
from strata.plan import Workload
from strata.quantizer.directories import as_gguf
from strata.records import dataclass
from strata.report.quality.compare import (
    LayerOutputs,
    Windows,
    compare,
    keep_logits,
    working_bytes,
)
from strata.report.quality.figures import Summary, TokenFigures, Values, summarize
from strata.report.quality.kept_logits import KeptLogits, LogitsOf, peek
from strata.report.quality.measured import (
    FLOATS,
    MeasuredFile,
    MeasuredQuality,
    lineage,
    most_of,
    remember,
)
from strata.report.quality.tasks import Answered, Question, answer, read_questions
from strata.text.cutting import PART

if TYPE_CHECKING:
    from strata.llm import LLM
    from strata.memory import Ledger
    from strata.text import Tokenizer


@dataclass(frozen=True)
class Options:
    """What is asked for beside the models."""

    text: Path | None
    tasks: Path | None
    context: int
    chunks: int | None
    whole: bool
    layers: bool
    logits: Path | None
    scratch_bytes: int
    backend: str
    threads: int | None
    kv_type: str | None
    base_kv_type: str | None
    kv_window: str | None
    kv_read: int
    memory: int | None
    quiet: bool


@dataclass(frozen=True)
class Subject:
    """A model as its header tells of it. ``weights`` is how many numbers its tensors hold."""

    reference: str
    path: Path
    nbytes: int
    weights: int
    vocab_size: int
    width: int

    @property
    def bits_per_weight(self) -> float:
        """Of the file, all of it."""
        return 8 * self.nbytes / self.weights


@dataclass
class Measured:
    """What was found of a model."""

    subject: Subject
    kv_type: str = ""
    summary: Summary | None = None
    losses: Values | None = None
    layers: list[tuple[str, float]] | None = None
    answered: Answered | None = None
    seconds: float = 0.0


@dataclass
class Results:
    """Of all models, in the order in which they were given. ``kept_base`` names the model of which
    kept logits are where it was not opened itself."""

    options: Options
    models: list[Measured] = field(default_factory=list)
    base: Measured | None = None
    kept_base: str | None = None
    windows: int = 0
    scored: int = 0
    tokens: str = ""
    questions: int = 0


class Lab:
    """Runs the base and the models, as often as the scratch on the disk makes necessary."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._text = ""
        self._kept: KeptLogits | None = None
        self._layers: LayerOutputs | None = None
        self._digest: str | None = None
        self._questions: list[Question] = []
        self._models = 0
        if options.text is not None:
            # llama.cpp drops one newline at the end of the file, too.
            self._text = read_text(options.text).removesuffix("\n")
            if not self._text:
                raise UsageError(f"{options.text} is empty")
        if options.tasks is not None:
            self._questions = read_questions(options.tasks)

    def run(self, references: Sequence[str], base: str | None) -> Results:
        """All that was asked for. What can be refused from headers alone is, before anything
        runs."""
        o = self._options
        subjects = [self._subject(r) for r in references]
        self._models = len(subjects) + 1
        base_subject = None if base is None else self._subject(base)
        known = None if o.logits is None else peek(o.logits)
        if base_subject is None and o.logits is not None and known is None:
            raise UsageError(f"{o.logits} is not there yet: give the --base that it is made of")
        vocabulary = base_subject.vocab_size if base_subject else known and known.vocab_size
        for subject in subjects:
            if vocabulary and subject.vocab_size != vocabulary:
                raise UsageError(
                    f"{subject.reference} has {subject.vocab_size} tokens and the base "
                    f"{vocabulary}: only models of one vocabulary can be compared"
                )
        results = Results(o, [Measured(s) for s in subjects], questions=len(self._questions))
        with ExitStack() as stack:
            stack.callback(self._close)
            if base_subject is not None:
                results.base = Measured(base_subject)
                self._run_base(results.base, known, 0)
            elif known is not None:
                assert o.logits is not None
                self._kept = KeptLogits.kept(o.logits, known)
                if self._kept.complete < known.windows:
                    raise UsageError(
                        f"{o.logits} has {self._kept.complete} of {known.windows} windows: give "
                        "the --base to make the others"
                    )
            results.kept_base = None if self._kept is None else self._kept.of.name
            self._run_models(results)
        return results

    def _run_models(self, results: Results) -> None:
        figures: dict[int, TokenFigures] = {}
        offset = 0
        while True:
            each = None
            for number, measured in enumerate(results.models):
                with self._open(measured) as (llm, windows):
                    if windows is not None:
                        each = windows
                        if number not in figures:
                            figures[number] = TokenFigures(
                                windows.count, windows.each, against=self._kept is not None
                            )
                        self._score(llm, measured, windows, figures[number], offset)
                    if offset == 0:
                        self._beside(llm, measured, windows)
            if each is None:
                return
            offset += self._round(each)
            if offset >= each.count:
                break
            assert results.base is not None
            self._run_base(results.base, None, offset)
        results.windows, results.scored, results.tokens = each.count, each.each, each.digest
        for number, measured in enumerate(results.models):
            found = figures[number]
            measured.summary = summarize(found, each.first)
            measured.losses = (found.kl if found.against else found.nll).mean(axis=1)

    def _round(self, windows: Windows) -> int:
        return windows.count if self._kept is None else self._kept.of.windows

    def _score(
        self,
        llm: LLM,
        measured: Measured,
        windows: Windows,
        figures: TokenFigures,
        offset: int,
    ) -> None:
        count = min(self._round(windows), windows.count - offset)
        started = perf_counter()

        def show(done: int) -> None:
            so_far = f"perplexity {_e(figures.nll.mean()):.4f}"
            if figures.against:
                so_far += f", KL {figures.kl.mean():.5f}"
            self._progress(measured, done, windows.count, so_far, started, done - offset)

        with llm.driver.alone() as engine:
            compare(
                engine,
                windows,
                figures,
                self._kept,
                offset=offset,
                count=count,
                progress=None if self._options.quiet else show,
            )
        measured.seconds += perf_counter() - started

    def _beside(self, llm: LLM, measured: Measured, windows: Windows | None) -> None:
        """Layers and tasks."""
        measured.kv_type = llm.runtime.kv_type.name
        with llm.driver.alone() as engine:
            if self._layers is not None and windows is not None:
                if measured.layers is None and self._layers.there:
                    measured.layers = self._layers.errors(engine, windows)
                else:
                    self._layers.keep(engine, windows)
            if self._questions:
                started = perf_counter()

                def show(done: int) -> None:
                    count = len(self._questions)
                    if sys.stderr.isatty() or done % 100 == 0 or done == count:
                        self._progress(measured, done, count, "questions", started, done)

                def ids(text: str) -> array[int]:
                    return encoded(llm.tokenizer, text, llm.ledger, add_special=True)

                measured.answered = answer(
                    engine, self._questions, ids, None if self._options.quiet else show
                )

    def _run_base(self, base: Measured, known: LogitsOf | None, offset: int) -> None:
        """Keep the base's logits from window ``offset`` on, but for those that are there."""
        o = self._options
        if offset == 0 and o.layers:
            self._layers = LayerOutputs(_scratch())
        with self._open(base, is_base=True) as (llm, windows):
            if windows is not None:
                count = windows.count - offset
                of = LogitsOf(
                    model=self._fingerprint(base.subject) if o.logits else "",
                    name=base.subject.path.name,
                    numerics=f"{llm.runtime.backend.numerics} {llm.runtime.kv_type.name}",
                    tokens=windows.digest,
                    context=windows.context,
                    first=windows.first,
                    windows=count,
                    vocab_size=base.subject.vocab_size,
                )
                if o.logits is not None:
                    self._kept = KeptLogits.kept(o.logits, of)
                else:
                    if self._kept is not None:
                        self._kept.close()
                    fits = o.scratch_bytes // of.window_bytes
                    if fits < 1:
                        raise UsageError(
                            f"--scratch-size has no room for one window of logits: it takes "
                            f"{of.window_bytes} bytes"
                        )
                    self._kept = KeptLogits.scratch(_scratch(), _fewer(of, min(count, fits)))
                started = perf_counter()
                there = self._kept.complete

                def show(done: int) -> None:
                    so_far = "logits of the base"
                    new = done - there
                    self._progress(base, offset + done, windows.count, so_far, started, new)

                with llm.driver.alone() as engine:
                    keep_logits(
                        engine,
                        windows,
                        self._kept,
                        offset=offset,
                        progress=None if o.quiet else show,
                    )
                base.seconds += perf_counter() - started
            if offset == 0:
                self._beside(llm, base, windows)

    def _fingerprint(self, subject: Subject) -> str:
        with (
            progress_bars(silent=self._options.quiet) as bars,
            open_model(subject.path) as file,
        ):

            def show(_: str, done: int, total: int | None) -> None:
                if bars is not None:
                    bars("every byte of the base, once, for --logits", done, total)

            return fingerprint(file, FileDigests(), show, drop_cached=True)

    def _subject(self, reference: str) -> Subject:
        with progress_bars(silent=self._options.quiet) as bars:
            path = resolve(reference, progress=bars)
        with open_model(path) as file:
            model = build_model(file, self._options.context)
            return Subject(
                reference,
                path,
                file.file_bytes,
                sum(prod(info.shape) for info in file.tensors.values()),
                model.vocab_size,
                model.width,
            )

    @contextmanager
    def _open(
        self, measured: Measured, *, is_base: bool = False
    ) -> Iterator[tuple[LLM, Windows | None]]:
        """A model with its weights, and the windows of the text as it has them. The base sees all
        that it keeps."""
        o, subject = self._options, measured.subject
        ids: array[int] | None = None
        most = None if o.chunks is None else o.chunks * o.context

        def planned(tokens: int) -> Workload:
            windows = tokens // o.context + 1
            held = tokens * array("i").itemsize + self._models * working_bytes(
                windows, o.context, 0
            )
            held += working_bytes(0, 0, subject.vocab_size)
            if o.layers:
                held += 4 * 8 * o.context * subject.width
            return Workload(o.context - 1, logit_rows=o.context, answer_tokens=0, text_bytes=held)

        def made(tokenizer: Tokenizer, ledger: Ledger) -> Workload:
            # Before the weights are there, and once.
            nonlocal ids
            ids = encoded(tokenizer, self._text, ledger, add_special=True, most=most)
            return planned(len(ids))

        tokens = most_tokens(len(self._text.encode("utf-8", "replace")))
        tokens = tokens if most is None else min(tokens, most + 4 * PART)
        with open_llm(
            str(subject.path),
            backend=o.backend,
            threads=o.threads,
            kv_type=o.base_kv_type if is_base else o.kv_type,
            kv_window=None if is_base else o.kv_window,
            kv_read=0 if is_base else o.kv_read,
            context=o.context,
            quiet=o.quiet,
            memory=o.memory,
            workload=TextWorkload(planned(tokens), made),
        ) as llm:
            windows = None
            if self._text:
                if ids is None:
                    ids = encoded(
                        llm.tokenizer, self._text, llm.ledger, add_special=True, most=most
                    )
                windows = self._windows(ids, llm.tokenizer, subject)
            yield llm, windows

    def _windows(self, ids: array[int], tokenizer: Tokenizer, subject: Subject) -> Windows:
        o = self._options
        chunks = o.chunks
        if chunks is None and self._kept is not None and o.logits is not None:
            chunks = self._kept.of.windows
        windows = Windows(
            ids,
            context=o.context,
            chunks=chunks,
            bos=tokenizer.bos_id if tokenizer.add_bos else None,
            whole=o.whole,
        )
        digest = windows.digest
        kept = self._kept
        if self._digest is None and kept is not None and o.logits is not None:
            self._digest = kept.of.tokens
            shape = (kept.of.context, kept.of.first, kept.of.windows)
            if digest != self._digest or shape != (windows.context, windows.first, windows.count):
                raise UsageError(
                    f"{o.logits} holds logits of another text, or of other windows of it "
                    f"({kept.of.windows} of {kept.of.context} tokens)"
                )
        self._digest = self._digest or digest
        if digest != self._digest:
            raise UsageError(
                f"{subject.reference} makes other tokens of this text than the models before: "
                "only models of one tokenizer can be compared"
            )
        return windows

    def _progress(
        self, measured: Measured, done: int, count: int, what: str, started: float, new: int
    ) -> None:
        left = (perf_counter() - started) / max(new, 1) * (count - done)
        line = f"{measured.subject.path.name} [{done}/{count}] {what}"
        if done < count:
            line += f", {left:.0f} s left"
        if sys.stderr.isatty():
            # Over the line before; the last one stays.
            click.echo(f"\r{line}\x1b[K", nl=done == count, err=True)
        else:
            remark(line)

    def _close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        if self._layers is not None:
            self._layers.close()


def keep_for_plans(results: Results) -> None:
    """What models lost against floats is what ``strata plan --fit`` says of them from now on."""
    base, o = results.base, results.options
    if o.kv_window is not None or o.kv_read:
        return
    if base is None or o.text is None or o.kv_type != o.base_kv_type or o.backend != DEFAULT:
        return
    files = []
    with suppress(StrataError):
        with open_model(base.subject.path) as opened:
            file = as_gguf(opened, vocabulary=False)
            model = lineage(file) if most_of(file) in FLOATS else None
        for m in results.models:
            with open_model(m.subject.path) as opened:
                file = as_gguf(opened, vocabulary=False)
                type, nbytes = most_of(file), file.nbytes
            s = m.summary
            if s is not None and s.kl is not None and s.same_top is not None:
                name = m.subject.path.name
                files.append(MeasuredFile(name, nbytes, type, s.kl.value, s.same_top.value))
        if model is not None and files:
            of = (o.text.name, results.tokens, results.windows, o.context)
            remember(model, MeasuredQuality(*of, tuple(files)))


def _scratch() -> Path:
    """Where files without a name lie: the system's own folder for them may be memory."""
    directory = strata_home() / "scratch"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _fewer(of: LogitsOf, windows: int) -> LogitsOf:
    from dataclasses import replace

    return replace(of, windows=windows)


def _e(mean: float) -> float:
    from math import exp

    return exp(min(mean, 700.0))
