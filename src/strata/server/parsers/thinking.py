"""What a model thinks before it answers, told apart from the answer.

Models of this kind write their thoughts between two marks, at the beginning; some chat templates
open them already. Harmony and Gemma 4 have their own way, which is part of their formats.
"""

from __future__ import annotations

from strata.records import dataclass
from strata.server.parsers.base import Reading
from strata.server.parsers.source import Give, Source

THINK = ("<think>", "</think>")
_MARKS = (
    THINK,
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_RESPONSE = ("<response>", "</response>")
_GRANITE = "".join(THINK) + " and write your response between " + "".join(_RESPONSE)


@dataclass(frozen=True)
class Thoughts:
    """Stand between ``start`` and ``end``; ``interrupts`` are marks of calls that end them, too.
    ``around`` are marks that may stand around the answer."""

    start: str = THINK[0]
    end: str = THINK[1]
    interrupts: tuple[str, ...] = ()
    around: tuple[str, str] | None = None

    def read(self, source: Source) -> Reading[None]:
        """Read the thoughts, if any come; the answer is next."""
        space = yield from source.space()
        if not (yield from source.take(self.start)):
            source.say(space)
            return
        yield from source.space()
        thought = Trimmed(source.think)
        yield from source.until(self.end, *self.interrupts, give=thought.add)
        if (yield from source.take(self.end)):
            # The empty line between thoughts and answer belongs to neither.
            while (yield from source.take("\n")):
                pass
        if self.around is not None and (yield from source.take(self.around[0])):
            yield from source.until(self.around[1], give=source.say)
            yield from source.take(self.around[1])

    def opening(self, prompt: str) -> str:
        """The part of a prompt's end that belongs to the answer, and is read before it."""
        return self.start if prompt.rstrip().endswith(self.start) else ""


class Trimmed:
    """Gives text on without the space at its end."""

    def __init__(self, give: Give) -> None:
        self._give = give
        self._space: list[str] = []

    def add(self, text: str) -> None:
        """More of it."""
        kept = text.rstrip()
        if kept:
            self._give("".join(self._space) + kept)
            self._space.clear()
        self._space.append(text[len(kept) :])


def thoughts_of(template: str, interrupts: tuple[str, ...] = ()) -> Thoughts | None:
    """How a model thinks, by its chat template's text; None if it does not."""
    for start, end in _MARKS:
        if end in template:
            around = _RESPONSE if _GRANITE in template else None
            return Thoughts(start, end, interrupts, around)
    return None
