"""From what is asked for, and a Plan where there is one, to what guesses tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strata.backends.registry import backend_class
from strata.decode.suffix import SuffixProposer, TokenHistory
from strata.engine.draft_choice import DraftChoice
from strata.engine.drafting import Drafting
from strata.engine.kv_settings import StoreSettings
from strata.engine.runner import LoadProgress
from strata.engine.runtime import Runtime
from strata.engine.step_costs import StepCosts
from strata.machine.constants import DRAFTED_TOGETHER, HISTORY_TOKENS
from strata.program import Model

if TYPE_CHECKING:
    from strata.engine.draft_files import DraftModelFile
    from strata.plan import Plan


def make_drafting(
    choice: DraftChoice,
    runtime: Runtime,
    model: Model,
    draft_model: DraftModelFile | None = None,
    progress: LoadProgress | None = None,
    store: StoreSettings | None = None,
) -> Drafting | None:
    """None where nothing is guessed: it was not asked for, or a Plan has no room for it. A draft
    model is loaded. Texts to guess from are kept in the ``store`` where there is one."""
    plan = runtime.plan
    # The bits of the reference depend on how many rows are computed together: only if told to.
    exact = backend_class(runtime.options.backend).plans
    asked = draft_model is not None or choice.asked or exact
    wanted = asked if plan is None else plan.draft_tokens > 0
    if choice.kind == "off" or model.embeds or not wanted:
        if draft_model is not None:
            draft_model.file.close()
        return None
    # Whoever has no Plan needs little else of that room.
    from strata.plan.drafts import texts_bytes

    remembered = HISTORY_TOKENS if plan is None else plan.history_tokens
    remembered = remembered if choice.kind == "suffix" else 0
    by_model = 0 if draft_model is None else runtime.options.draft_model_bytes
    alone = texts_bytes(remembered, model.context_length, runtime.parallel) + by_model
    runtime.ledger.take("drafts", alone if plan is None else plan.predicted.memory.drafts)
    history = TokenHistory(remembered)
    closing: Callable[[], None] | None = None
    if store is not None and remembered:
        from strata.engine.kept_texts import KeptTexts

        kept = KeptTexts(store.directory, store.model)
        history.restore(kept.load(remembered, model.vocab_size))

        def closing() -> None:
            kept.keep(history.tokens)

    drafting = Drafting(
        SuffixProposer(history if remembered else None),
        together=min(choice.tokens * runtime.parallel, DRAFTED_TOGETHER),
        costs=StepCosts(),
        recurrent=any(group.recurrent for group in model.groups),
        model=None if draft_model is None else draft_model.load(model.vocab_size, progress),
        closing=closing,
    )
    if plan is not None:
        follow(drafting, plan)
    return drafting


def follow(drafting: Drafting, plan: Plan) -> None:
    """Guess as a Plan has it: no more than it has rows for, by its times until there are others."""
    drafting.together = plan.draft_tokens
    seconds = plan.predicted.rows_s
    drafting.costs = StepCosts({1 << power: s for power, s in enumerate(seconds)})
