"""What layers keep: the groups of a model, and what a window sees."""

from __future__ import annotations

import pytest

from strata.program import PagedKV, ProgramError, Recurrent, Shared, StateGroup, state_groups


def test_a_window_sees_so_many_positions_and_its_own_among_them() -> None:
    for window in (1, 2, 3, 64, 66, 1000):
        group = StateGroup((0,), window)
        for position in (0, 1, window - 1, window, 63, 64, 127, 128, 5000):
            seen = [p for p in range(position + 1) if position - p < window]
            assert group.first_seen(position) == seen[0]
    assert StateGroup((0,)).first_seen(5000) == 0


def test_layers_that_keep_for_the_same_time_are_a_group() -> None:
    full, wide, small = PagedKV(1, 4, 4), PagedKV(1, 4, 4, 150), PagedKV(2, 8, 4, 20)
    rest = Recurrent(((2,),))
    assert state_groups([small, rest, wide, full, Shared(2), small, rest]) == (
        StateGroup((3,)),
        StateGroup((2,), 150),
        StateGroup((0, 5), 20),
        StateGroup((1, 6), recurrent=True),
    )
    assert state_groups([]) == ()


@pytest.mark.parametrize("state", [[Shared(0)], [Recurrent(((2,),)), Shared(0)], [Shared(1)]])
def test_nothing_is_shared_that_is_not_kept_before(state: list[Recurrent | Shared]) -> None:
    with pytest.raises(ProgramError, match="shares state"):
        state_groups(state)
