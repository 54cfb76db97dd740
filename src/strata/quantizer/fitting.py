"""The largest mix of which nothing streams in a budget, by the Plan that will be made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from strata.backends.registry import DEFAULT, backend_class
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.formats.header_only import with_types
from strata.machine.machine import Machine
from strata.models import build_model
from strata.plan import BudgetTooSmall, Limits, Workload
from strata.plan.outline import outline
from strata.plan.planner import plan
from strata.quant import BlockType
from strata.quantizer.allocate import Choice, NoRoom
from strata.quantizer.mixes import fitting
from strata.sizes import format_size

_TRIES = 16
# Of the size: nearer it is not searched for.
_CLOSE = 0.005


def types_of(mix: Mapping[str, Choice], file: ModelFile) -> dict[str, BlockType]:
    """The types of a mix by tensor."""
    return {name: fitting(c.label, file.tensors[name].shape[-1]) for name, c in mix.items()}


def mix_that_fits(
    file: ModelFile,
    mix: Callable[[int], dict[str, Choice]],
    machine: Machine,
    budget: int,
    threads: int | None = None,
) -> dict[str, Choice]:
    """The largest mix that a usual run keeps in ``budget`` bytes, all of it, its context and all
    else beside.

    ``mix`` gives the best one whose tensors take so many bytes. Raises UsageError where not even
    the smallest stays.
    """

    def streamed(header: ModelFile) -> int:
        model = build_model(header)
        profile = backend_class(DEFAULT).profile(model, WeightSource(header))
        sizes = outline(file.path.name, model, header, profile)
        limits = Limits(budget, threads, there=machine.memory_total or None)
        usual, half = Workload(), model.context_length // 2
        prompt, answer = min(usual.prompt_tokens, half), min(usual.answer_tokens, half)
        work = Workload(prompt, answer_tokens=answer)
        try:
            return plan(sizes, machine, limits, work).predicted.sweep_bytes
        except BudgetTooSmall as error:
            return error.smallest

    room, low, high = budget, 0, budget
    best: dict[str, Choice] | None = None
    for _ in range(_TRIES):
        try:
            chosen = mix(room)
        except NoRoom:
            low = room
        else:
            header = with_types(file, types_of(chosen, file))
            over = streamed(header)
            if not over:
                best, low = chosen, room
            else:
                high = min(room, header.nbytes)
            if over and not low:
                # What streams has to go, mostly.
                room = max(high - over, 1)
                continue
        if high - low <= high * _CLOSE:
            break
        room = (low + high) // 2
    if best is not None:
        return best
    raise UsageError(
        f"no mix of {file.path.name} stays in {format_size(budget)} as a whole: give more, or a "
        "--type, which will stream"
    )
