"""What is set aside for tokens that are guessed ahead: rows of logits, and texts to guess from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from strata.machine import constants
from strata.records import dataclass

if TYPE_CHECKING:
    from strata.plan.memory_model import Sizes
    from strata.plan.outline import Outline
    from strata.plan.plan import Workload


@dataclass(frozen=True)
class Drafts:
    """At most ``tokens`` are guessed in a sweep, of which the head gives ``rows`` more rows at a
    time; ``history_tokens`` of earlier texts are kept. All of it takes ``added_bytes`` of a budget,
    of which ``nbytes`` are beside the rows of logits."""

    tokens: int = 0
    rows: int = 0
    history_tokens: int = 0
    added_bytes: int = 0
    nbytes: int = 0


NO_DRAFTS = Drafts()


def drafts(model: Outline, workload: Workload, sizes: Sizes, spare: int) -> Drafts:
    """As much of what the workload wants as ``spare`` bytes have room for, beside ``sizes``."""
    most = min(workload.draft_tokens, constants.LOGIT_ROWS - sizes.logit_rows)
    history = min(constants.HISTORY_TOKENS, spare // constants.HISTORY_SHARE)
    nbytes = texts_bytes(history, sizes.context, workload.concurrency)
    arena = model.profile.arena_bytes(sizes.max_tokens, sizes.logit_rows)
    for rows in range(most, 0, -1):
        more = model.profile.arena_bytes(sizes.max_tokens, sizes.logit_rows + rows) - arena
        logits = rows * model.row_width * 4
        added = int((nbytes + more + logits) * (1 + constants.MARGIN_SHARE)) + 2
        if added <= spare:
            return Drafts(rows, rows, history, added, nbytes)
    return NO_DRAFTS


def for_all(made: Drafts, workload: Workload, *, head_stays: bool) -> Drafts:
    """The same with as many tokens for each of several requests as for one: a head that is in
    memory is run again for rows beyond those that it gives at a time."""
    if not made.tokens or not head_stays:
        return made
    wanted = min(workload.draft_tokens * workload.concurrency, constants.DRAFTED_TOGETHER)
    return replace(made, tokens=max(made.tokens, wanted))


def used_drafts(made: Drafts, workload: Workload, positions: int) -> Drafts:
    """As much of ``made`` as ``workload`` touches at most, with texts of ``positions`` tokens: the
    first token of an answer comes with the prompt, and the last one is not guessed."""
    if not made.tokens:
        return made
    guessed = min(made.tokens, workload.concurrency * max(0, workload.answer_tokens - 2))
    history = min(made.history_tokens, workload.concurrency * positions)
    nbytes = texts_bytes(history, positions, workload.concurrency)
    return Drafts(guessed, min(made.rows, guessed), history, 0, nbytes)


def branch_blocks(guessed: Drafts, workload: Workload) -> int:
    """Blocks of KV of each group that all branches of drafts take at once: each has one of its own
    where it begins, and the next one."""
    branches = min(workload.concurrency * constants.DRAFT_BRANCHES, max(0, guessed.tokens - 1))
    return 2 * branches


def texts_bytes(history: int, context: int, texts: int) -> int:
    """Bytes of the index of tokens to guess from: of ``texts`` that are answered, and of so many of
    earlier ones."""
    return (history + texts * context) * constants.DRAFT_TEXT_TOKEN


def row_counts(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and so on, until there are ``most`` rows."""
    return tuple(1 << power for power in range((most - 1).bit_length() + 1))
