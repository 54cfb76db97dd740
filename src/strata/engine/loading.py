"""From a model file to an engine that is ready. What the next decision depends on comes first: the
context, the Model, the tokenizer, the Plan, KV, and at last the weights."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from strata.backends.kv_types import F32, KV_TYPES, choose_kv_type
from strata.backends.weights import WeightSource
from strata.cores import usable_cores
from strata.engine.draft_choice import parse_draft
from strata.engine.drafts import make_drafting
from strata.engine.engine import TOKEN_BUDGET, Engine
from strata.engine.kv_settings import KVSettings, StoreSettings, state_blocks
from strata.engine.runner import LoadProgress
from strata.engine.runtime import (
    LoadOptions,
    Runtime,
    base_memory,
    make_runtime,
    needs_plan,
    settled_memory,
    smallest_budget,
)
from strata.engine.texts import TextWorkload
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.kv import pool_blocks
from strata.machine.constants import DEFAULT_CONTEXT, MB, PROCESS_VARIES
from strata.memory.limits import memory_available, memory_total
from strata.models import build_model, embedding_model, trained_context, with_context
from strata.models.kv_read import with_part_seen
from strata.models.kv_window import KVWindow
from strata.plan.outline import tokenizer_outline
from strata.plan.tokenizer_memory import tokenizer_bytes as built_bytes
from strata.program import Model
from strata.records import dataclass
from strata.sizes import format_budget, format_size
from strata.text import Tokenizer, load_tokenizer
from strata.text.load import gguf_sizes
from strata.text.template_names import template_of

if TYPE_CHECKING:
    from strata.engine.draft_files import DraftModelFile
    from strata.kv.store_directory import StoreDirectory
    from strata.plan import Plan


_KV_TOGETHER = 0.1
"""Of free memory: what KV of sequences may take that run together without being asked to."""

_HEADER_ROOM = 64 * MB

_FIRST_TEXT = "Much of it is made when it is first used."


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run. ``wanted_context`` is the context of ``engine``, or more where
    memory was short and none was asked for."""

    file: ModelFile
    model: Model
    wanted_context: int
    tokenizer: Tokenizer
    runtime: Runtime
    engine: Engine


def load(
    path: Path, options: LoadOptions, plan: Plan | None = None, progress: LoadProgress | None = None
) -> Loaded:
    """Load the model at ``path``, by ``plan`` where there is one.

    A budget above what the machine and its cgroups have is what they have. Raises BudgetTooSmall
    before any weight is read, and UsageError for what contradicts the model.
    """
    process = base_memory(planned=options.wants_plan)
    options = replace(options, process_bytes=process)
    if options.memory is not None:
        options = replace(options, memory=min(options.memory, memory_total() or options.memory))
    file = open_model(path, _header_room(options))
    try:
        # What runs beside the rest reads from the file: it has ended before that is closed.
        with ThreadPoolExecutor(1, "strata-load") as beside:
            return _load(file, options, plan, progress, beside)
    except BaseException:
        file.close()
        raise


def _load(
    file: ModelFile,
    options: LoadOptions,
    plan: Plan | None,
    progress: LoadProgress | None,
    beside: Executor,
) -> Loaded:
    # They may be refused, and take no time.
    parse_draft(options.draft)
    directory = _store_directory(options)
    if plan is not None:
        options = _as_planned(options, plan)
    wanted = options.context if plan is None else plan.context
    if wanted is None:
        wanted = min(DEFAULT_CONTEXT, trained_context(file))
    model = _build(file, wanted, options)
    if options.serving and not options.embedding and (model.embeds or not model.causal):
        options = replace(options, embedding=True)
        model = embedding_model(model)
    if not options.embedding and (model.embeds or not model.causal):
        raise UsageError(
            f"'{model.architecture}' models see a whole text at once and do not continue it token "
            f"by token: this one embeds texts (`strata embed`)"
        )
    if options.together and plan is None and not needs_plan(file, options):
        options = replace(options, parallel=_together(model, options))
    _check_tokenizer(file, model, options)
    tokenizer = load_tokenizer(file)
    if options.chat_template is not None:
        template = template_of(options.chat_template, add_bos=tokenizer.add_bos)
        tokenizer.use_chat_templates({"default": template})
    encoded: Future[object] | None = None
    one_text: TextWorkload | None = None
    if plan is None and not needs_plan(file, options) and gguf_sizes(file) is not None:
        # There is room: weights are loaded meanwhile.
        if isinstance(options.workload, TextWorkload) and tokenizer.expect_one_text():
            one_text = options.workload
        else:
            encoded = beside.submit(tokenizer.encode, _FIRST_TEXT)
        tokenizer_bytes = built_bytes(tokenizer_outline(model, file))
    else:
        # Building takes more for a while than it keeps: before there are weights, and in this
        # thread, since another one's allocator does not use again what was freed here.
        tokenizer.encode(_FIRST_TEXT)
        # With what the file keeps of it since it was opened.
        tokenizer_bytes = max(0, settled_memory() - (options.process_bytes or 0))
    draft_model = _draft_model(file, model, options, tokenizer)
    if draft_model is not None:
        options = replace(options, draft_model_bytes=draft_model.nbytes())
    runtime = make_runtime(
        file, model, options, plan, tokenizer=tokenizer, tokenizer_bytes=tokenizer_bytes
    )
    if one_text is not None:
        encoded = beside.submit(one_text.made, tokenizer, runtime.ledger)
    if runtime.context < wanted:
        if options.kv_window is None and not options.kv_read:
            model = with_context(file, model, runtime.context)
            model = embedding_model(model) if options.embedding else model
        else:
            model = _build(file, runtime.context, options)
    kv = KVSettings(
        type=runtime.kv_type.name,
        blocks=None if runtime.plan is None else runtime.plan.kv_blocks,
        nbytes=options.kv_bytes,
    )
    # Before the weights are loaded: there may be no room.
    blocks = state_blocks(
        kv,
        runtime.kv_type,
        model,
        context=runtime.context,
        parallel=runtime.parallel,
        step_rows=runtime.token_budget,
    )
    if directory is not None:
        from strata.formats.fingerprint import fingerprint
        from strata.hub.digests import FileDigests

        identity = fingerprint(file, FileDigests(), progress, drop_cached=runtime.limited)
        kv = replace(kv, store=StoreSettings(directory, identity, file.unchanged, file.path.name))
    if file.foreign:
        from strata.hub.downloads import exclusive, strata_home

        repacked = strata_home() / "repacked"
        repacked.mkdir(parents=True, exist_ok=True)
        with exclusive(repacked / "lock"):
            file.repack(repacked, progress)
    engine = Engine(
        runtime.runner(model, WeightSource(file), progress),
        context=runtime.context,
        parallel=runtime.parallel,
        token_budget=runtime.token_budget,
        stop_ids=tokenizer.stop_ids,
        kv=replace(kv, blocks=blocks),
        prefill_budget=() if runtime.plan is None else runtime.plan.prefill_budget,
        slowdown=options.slowdown,
        drafting=make_drafting(
            parse_draft(options.draft), runtime, model, draft_model, progress, kv.store
        ),
    )
    if encoded is not None:
        encoded.result()
    runtime.ready()
    return Loaded(file, model, wanted, tokenizer, runtime, engine)


def _store_directory(options: LoadOptions) -> StoreDirectory | None:
    if not options.kv_store:
        return None
    from strata.kv.store_directory import StoreDirectory

    return StoreDirectory(options.kv_store, options.kv_store_bytes)


def _draft_model(
    file: ModelFile, model: Model, options: LoadOptions, tokenizer: Tokenizer
) -> DraftModelFile | None:
    """The model that is to guess, opened and checked; UsageError for one that cannot."""
    if options.draft_model is None or options.embedding:
        return None
    if parse_draft(options.draft).kind == "off":
        raise UsageError("a draft model is given, and --draft off: leave one of them out")
    from strata.engine.draft_files import open_draft_model

    return open_draft_model(
        options.draft_model,
        file,
        model,
        tokenizer,
        parallel=options.parallel,
        threads=options.threads or usable_cores(),
    )


def _together(model: Model, options: LoadOptions) -> int:
    """Sequences that run together where nobody says: as many as have KV in a modest share of free
    memory, of what takes most."""
    kv_type = F32 if options.kv_type is None else choose_kv_type(options.kv_type, (*KV_TYPES, F32))
    sizes = [kv_type.block_nbytes(model.state, group) for group in model.groups]
    for parallel in (8, 4, 2):
        kv = pool_blocks(
            model.groups,
            sizes,
            context=model.context_length,
            parallel=parallel,
            step_rows=TOKEN_BUDGET,
        )
        assert kv is not None
        nbytes = sum(n * size for n, size in zip(kv, sizes, strict=True))
        if nbytes <= _KV_TOGETHER * memory_available():
            return parallel
    return 1


def _as_planned(options: LoadOptions, plan: Plan) -> LoadOptions:
    """With what rows see as the Plan says; UsageError if something else is asked for."""
    window = KVWindow.parse(plan.kv_window) if plan.kv_window else None
    if options.kv_window not in (None, window) or options.kv_read not in (0, plan.kv_read):
        raise UsageError(
            f"this plan was made with {f'a KV window of {window}' if window else 'no KV window'} "
            f"and for reading {plan.kv_read or 'all'} positions: leave these to it, or make another"
        )
    return replace(options, kv_window=window, kv_read=plan.kv_read)


def _build(file: ModelFile, context: int, options: LoadOptions) -> Model:
    if options.kv_window is None:
        model = build_model(file, context)
    else:
        model = build_model(file, min(context, trained_context(file)))
    model = with_part_seen(model, options.kv_window, options.kv_read, context)
    return embedding_model(model) if options.embedding else model


def _room(options: LoadOptions) -> int | None:
    """Bytes of the budget that the process has not taken, None where there is no budget."""
    if options.memory is None:
        return None
    return max(0, options.memory - (options.process_bytes or 0))


def _header_room(options: LoadOptions) -> int | None:
    """Bytes that reading a header may take. A budget in which no model runs is refused with the
    smallest that does, for which the header is needed."""
    room = _room(options)
    return None if room is None else max(room, _HEADER_ROOM)


def _check_tokenizer(file: ModelFile, model: Model, options: LoadOptions) -> None:
    """BudgetTooSmall if the budget does not even do for building the tokenizer: it is built before
    there is a Plan, which is made for what it makes of a text."""
    if options.memory is None:
        return
    from strata.plan import BudgetTooSmall
    from strata.plan.memory_model import with_peak_margin
    from strata.plan.outline import tokenizer_outline
    from strata.plan.tokenizer_memory import tokenizer_building_bytes

    outline = tokenizer_outline(model, file)
    needed = tokenizer_building_bytes(outline)
    if file.kind == "huggingface" and (path := file.sidecar("tokenizer.json")) is not None:
        # However few its tokens: the text, and the strings made of it.
        needed = max(needed, 2 * path.stat().st_size)
    built = with_peak_margin((options.process_bytes or 0) + needed)
    if built > options.memory:
        # Where that is not all for which there is no room, what does for all of it.
        built += PROCESS_VARIES
        smallest = max(built, smallest_budget(file, model, options))
        needs = f"it needs {format_budget(smallest)} at least"
        if isinstance(options.workload, TextWorkload):
            # How many tokens it has, is known once the tokenizer is there.
            needs = f"this text needs {format_budget(smallest)} or less; with "
            needs += f"{format_budget(built + MB)} or more, the exact minimum is told"
        raise BudgetTooSmall(
            f"{format_size(options.memory)} is too little for {file.path.name}: building its "
            f"tokenizer of {outline.tokens} tokens and {outline.merges} merges takes "
            f"{format_size(needed)}; {needs}",
            smallest,
        )
