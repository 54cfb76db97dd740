"""Models that guess for another one, as files: opened, checked and counted before they load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from strata.backends.base import NoBooks
from strata.backends.kv_types import choose_kv_type
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import BorrowingSource, WeightSource
from strata.cores import usable_cores
from strata.engine.draft_choice import OwnPart
from strata.engine.draft_model import DraftModel, step_rows
from strata.engine.guesser import Guesser
from strata.engine.medusa import MedusaDraft
from strata.engine.mtp import MtpDraft, seen_bytes
from strata.engine.runner import LoadProgress, Runner
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.kv import pool_blocks
from strata.machine.constants import DEFAULT_CONTEXT
from strata.models import build_model, trained_context
from strata.models.first_layers import first_layers
from strata.models.guessing_heads import guessing_heads, heads_kind, token_ids
from strata.models.mtp import mtp_model
from strata.program import Model
from strata.records import dataclass
from strata.text import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class DraftModelFile:
    """A draft model that fits the model for which it guesses, and may be loaded.

    ``sees``: the numbers of the Segments of that model from whose rows it guesses, none for one
    that reads texts alone; its own file is the ``lender`` of weights that ``file`` leaves out.
    """

    file: ModelFile
    model: Model
    parallel: int
    threads: int
    sees: tuple[int, ...] = ()
    lender: ModelFile | None = None

    @property
    def _source(self) -> WeightSource:
        if self.lender is None:
            return WeightSource(self.file)
        return BorrowingSource(self.file, self.lender)

    def nbytes(self) -> int:
        """Bytes that it will take: weights, KV of ``parallel`` texts, activations, logits."""
        from strata.plan.draft_model import draft_model_bytes

        kind = backend_class("cpu")
        profile = kind.profile(self.model, self._source)
        kv_type = choose_kv_type(None, profile.kv_types)
        seen = seen_bytes(self.model, self.parallel) if self.sees else 0
        return seen + draft_model_bytes(
            profile,
            self.model.row_width,
            threads=self.threads,
            rows=step_rows(self.parallel),
            parallel=self.parallel,
            context=self.model.context_length,
            kv_blocks=self._blocks(profile.block_nbytes(kv_type.name)),
            kv_type=kv_type.name,
        )

    def _blocks(self, sizes: Sequence[int]) -> tuple[int, ...]:
        blocks = pool_blocks(
            self.model.groups,
            sizes,
            context=self.model.context_length,
            parallel=self.parallel,
            step_rows=step_rows(self.parallel),
        )
        assert blocks is not None
        return blocks

    def load(self, vocabulary: int, progress: LoadProgress | None) -> Guesser:
        """Load its weights; it guesses tokens below ``vocabulary``."""
        rows = step_rows(self.parallel)
        context = self.model.context_length
        settings = BackendSettings(
            max_tokens=rows, max_logit_rows=self.parallel, parallel=self.parallel, positions=context
        )
        # All of it was entered in the books before.
        backend = backend_class("cpu").create(self.threads, None, settings, NoBooks())
        if not self.model.state:
            return MedusaDraft(
                backend,
                self.model,
                self._source,
                self.file,
                progress,
                sees=self.sees,
                parallel=self.parallel,
                vocabulary=vocabulary,
            )
        runner = Runner(backend, self.model, self._source, progress, logit_rows=self.parallel)
        backend.prepare()
        if not self.sees:
            made = DraftModel(runner, self.file, parallel=self.parallel, vocabulary=vocabulary)
            made.try_out()
            return made
        ids = None
        if self.lender is not None:
            ids = token_ids(self.file, self.model.vocab_size, vocabulary)
        return MtpDraft(
            runner,
            self.file,
            parallel=self.parallel,
            vocabulary=vocabulary,
            sees=self.sees,
            ids=ids,
        )


def planned_bytes(
    file: ModelFile,
    target: ModelFile,
    context: int | None,
    parallel: int,
    threads: int | None,
    part: OwnPart | None = None,
) -> int:
    """Bytes that the draft model in ``file`` will take beside ``parallel`` texts of the model in
    ``target``: of a ``part`` of it, where not all is meant."""
    context = min(context or DEFAULT_CONTEXT, trained_context(target))
    model = build_model(target, context)
    return _checked(file, target, model, parallel, threads or usable_cores(), part).nbytes()


def open_draft_model(
    chosen: Path | OwnPart,
    target: ModelFile,
    model: Model,
    tokenizer: Tokenizer,
    *,
    parallel: int,
    threads: int,
) -> DraftModelFile:
    """The model (or the heads) at the path ``chosen``, or a part of ``target`` itself, as one that
    guesses for it, which is ``model``; UsageError, which says why, where it cannot."""
    path, part = (chosen, None) if isinstance(chosen, Path) else (target.path, chosen)
    file = open_model(path)
    try:
        made = _checked(file, target, model, parallel, threads, part)
        if made.lender is not None:
            token_ids(file, made.model.vocab_size, model.vocab_size)
        elif path != target.path:
            name, of = file.path.name, target.path.name
            _same_vocabulary(load_tokenizer(file), tokenizer, name, of)
        return made
    except BaseException:
        file.close()
        raise


def _checked(
    file: ModelFile,
    target: ModelFile,
    target_model: Model,
    parallel: int,
    threads: int,
    part: OwnPart | None,
) -> DraftModelFile:
    """What is in a file, for texts as long as those of ``target_model``, or as it knows; UsageError
    for what cannot guess."""
    kind = None if part is not None else heads_kind(file)
    if kind is None:
        model = _checked_model(file, target_model.context_length, target.path.name, part)
        sees = (len(target_model.segments) - 2,) if part == "mtp" else ()
        return DraftModelFile(file, model, parallel, threads, sees)
    if target.foreign:
        raise UsageError(
            f"{file.path.name} cannot guess for {target.path.name}, whose weights are quantised in "
            f"a form that is put together first; give a GGUF file of that model"
        )
    heads = guessing_heads(file, kind, target_model, target.path.name)
    return DraftModelFile(file, heads.model, parallel, threads, heads.sees, target)


def _checked_model(file: ModelFile, context: int, of: str, part: OwnPart | None) -> Model:
    name = file.path.name
    if file.foreign:
        raise UsageError(
            f"{name} cannot guess for {of}: its weights are quantised in a form that is put "
            f"together first; give a GGUF file of it"
        )
    context = min(context, trained_context(file))
    if part == "mtp":
        return mtp_model(file, context)
    model = build_model(file, context)
    model = model if part is None else first_layers(model, part)
    if model.embeds or not model.causal:
        raise UsageError(f"{name} cannot guess for {of}: it continues no texts")
    if any(group.recurrent for group in model.groups):
        raise UsageError(
            f"{name} cannot guess for {of}: a {model.architecture} model has recurrent state, "
            f"which does not go back where a guess was wrong; give one with attention alone"
        )
    return model


def _same_vocabulary(draft: Tokenizer, target: Tokenizer, name: str, of: str) -> None:
    """UsageError, with the first token that differs."""
    if draft.vocab_size != target.vocab_size:
        raise UsageError(
            f"{name} cannot guess for {of}: it has {draft.vocab_size} tokens and not "
            f"{target.vocab_size}; a draft model needs the same vocabulary"
        )
    for id in range(target.vocab_size):
        one, other = draft.token_bytes(id, special=True), target.token_bytes(id, special=True)
        if one != other:
            raise UsageError(
                f"{name} cannot guess for {of}: token {id} is {one!r} there and {other!r} here; "
                f"a draft model needs the same vocabulary"
            )
