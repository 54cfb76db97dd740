"""How many blocks each group of a model's state gets, and the contexts that bounds allow."""

from __future__ import annotations

from strata.backends.kv_types import KV_BLOCK
from strata.kv import no_room, pool_blocks
from strata.plan.outline import Outline


class StateRoom:
    """State of ``parallel`` sequences of a model, in ``nbytes`` at most where that is given."""

    def __init__(self, model: Outline, kv_type: str, parallel: int, nbytes: int | None) -> None:
        self._model, self._kv_type = model, kv_type
        self._parallel, self._nbytes = parallel, nbytes
        self._sizes = model.profile.block_nbytes(kv_type)

    def blocks(self, context: int, step_rows: int) -> tuple[int, ...] | None:
        """Blocks of each group for sequences of ``context`` positions, in steps of up to
        ``step_rows`` rows; None where the bound does not hold a single one."""
        return pool_blocks(
            self._model.groups,
            self._sizes,
            context=context,
            parallel=self._parallel,
            step_rows=step_rows,
            nbytes=self._nbytes,
        )

    def longest(self, context: int, step_rows: int) -> int:
        """The longest context up to ``context`` of which the bound holds a sequence, in whole
        blocks unless it is ``context``; 0 if there is none."""
        if self.blocks(context, step_rows) is not None:
            return context
        low, high = 0, context // KV_BLOCK
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks(middle * KV_BLOCK, step_rows) is None:
                high = middle - 1
            else:
                low = middle
        return low * KV_BLOCK

    def check(self, context: int, step_rows: int) -> None:
        """UsageError if the bound holds no sequence of ``context`` positions."""
        if self._nbytes is None or self.blocks(context, step_rows) is not None:
            return
        raise no_room(
            self._model.groups,
            self._sizes,
            context=context,
            step_rows=step_rows,
            nbytes=self._nbytes,
            kv_type=self._kv_type,
        )
