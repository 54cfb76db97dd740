"""How tokens are guessed ahead: what people may ask for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from strata.errors import UsageError
from strata.records import dataclass

DRAFT_TOKENS = 31
"""Tokens that are guessed for a request at most."""

DraftKind = Literal["off", "ngram", "suffix"]


@dataclass(frozen=True)
class DraftChoice:
    """``off``; ``ngram``: what followed the last words before in the same text; ``suffix``: the
    same in earlier texts, too. Not ``asked`` for: only where no bit depends on it."""

    kind: DraftKind
    asked: bool = True

    @property
    def tokens(self) -> int:
        """Tokens that are guessed for a request at most."""
        return 0 if self.kind == "off" else DRAFT_TOKENS


def parse_draft(text: str) -> DraftChoice:
    """What is meant by ``auto``, ``off``, ``ngram`` or ``suffix``; UsageError for anything else."""
    if text == "auto":
        return DraftChoice("suffix", asked=False)
    if text in ("off", "ngram", "suffix"):
        return DraftChoice(text)  # type: ignore[arg-type]
    raise UsageError(f"'{text}' is no way to guess tokens: auto, off, ngram or suffix")


OwnPart: TypeAlias = int | Literal["mtp"]
"""What a model has that may guess for it: so many first layers, or the block that is for that."""


def own_part(text: str) -> OwnPart | None:
    """Which part of a model is to guess for it, of ``self:N`` or ``self:mtp``; None for what is a
    reference to another model. UsageError for no such part."""
    name, colon, part = text.partition(":")
    if name != "self" or not colon:
        return None
    if part == "mtp":
        return "mtp"
    if not (part.isascii() and part.isdigit() and len(part) < 5 and int(part) > 0):
        raise UsageError(f"'{text}' is no number of layers: write it like self:8, or self:mtp")
    return int(part)
