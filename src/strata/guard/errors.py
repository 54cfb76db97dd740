"""The error of this room."""

from __future__ import annotations

from strata.errors import StrataError


class GuardError(StrataError):
    """A guarded process was ended before it answered; the message says by which bound."""


class TemplateFailure(Exception):
    """Why a template gave no text."""


class GuardBusy(GuardError):
    """There is no memory for a guarded process at the moment; try again later."""
