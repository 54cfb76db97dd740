"""Models that guess for another one, as files: opened, checked and counted before they load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strata.backends.base import NoBooks
from strata.backends.kv_types import choose_kv_type
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.cores import usable_cores
from strata.engine.draft_choice import OwnPart
from strata.engine.draft_model import DraftModel, step_rows
from strata.engine.mtp import MtpDraft, seen_bytes
from strata.engine.runner import LoadProgress, Runner
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.kv import pool_blocks
from strata.machine.constants import DEFAULT_CONTEXT
from strata.models import build_model, trained_context
from strata.models.first_layers import first_layers
from strata.models.mtp import mtp_model
from strata.program import Model
from strata.text import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class DraftModelFile:
    """A draft model that fits the model for which it guesses, and may be loaded. ``mtp``: it is the
    block of that model which predicts further tokens."""

    file: ModelFile
    model: Model
    parallel: int
    threads: int
    mtp: bool = False

    def nbytes(self) -> int:
        """Bytes that it will take: weights, KV of ``parallel`` texts, activations, logits."""
        from strata.plan.draft_model import draft_model_bytes

        kind = backend_class("cpu")
        profile = kind.profile(self.model, WeightSource(self.file))
        kv_type = choose_kv_type(None, profile.kv_types)
        seen = seen_bytes(self.model, self.parallel) if self.mtp else 0
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

    def load(self, vocabulary: int, progress: LoadProgress | None) -> DraftModel:
        """Load its weights; it guesses tokens below ``vocabulary``."""
        rows = step_rows(self.parallel)
        context = self.model.context_length
        settings = BackendSettings(
            max_tokens=rows, max_logit_rows=self.parallel, parallel=self.parallel, positions=context
        )
        # All of it was entered in the books before.
        backend = backend_class("cpu").create(self.threads, None, settings, NoBooks())
        source = WeightSource(self.file)
        runner = Runner(backend, self.model, source, progress, logit_rows=self.parallel)
        backend.prepare()
        guesses = MtpDraft if self.mtp else DraftModel
        return guesses(runner, self.file, parallel=self.parallel, vocabulary=vocabulary)


def planned_bytes(
    file: ModelFile,
    context: int | None,
    parallel: int,
    threads: int | None,
    part: OwnPart | None = None,
) -> int:
    """Bytes that the draft model in ``file`` will take beside ``parallel`` texts: of a ``part`` of
    it, where not all is meant."""
    model = _checked(file, context or DEFAULT_CONTEXT, "another model", part)
    cores = threads or usable_cores()
    return DraftModelFile(file, model, parallel, cores, part == "mtp").nbytes()


def open_draft_model(
    chosen: Path | OwnPart,
    target: ModelFile,
    tokenizer: Tokenizer,
    *,
    context: int,
    parallel: int,
    threads: int,
) -> DraftModelFile:
    """The model at the path ``chosen``, or a part of ``target`` itself, as one that guesses for it;
    UsageError, which says why, where it cannot."""
    path, part = (chosen, None) if isinstance(chosen, Path) else (target.path, chosen)
    file = open_model(path)
    try:
        name, of = file.path.name, target.path.name
        model = _checked(file, context, of, part)
        if path != target.path:
            _same_vocabulary(load_tokenizer(file), tokenizer, name, of)
        return DraftModelFile(file, model, parallel, threads, part == "mtp")
    except BaseException:
        file.close()
        raise


def _checked(file: ModelFile, context: int, of: str, part: OwnPart | None = None) -> Model:
    """The Model of a file, for texts of ``context`` tokens or as many as it knows; UsageError for
    one that cannot guess."""
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
