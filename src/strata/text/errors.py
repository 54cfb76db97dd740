"""The errors of this room: a vocabulary that cannot be used, a chat template that cannot be run."""

from __future__ import annotations

from strata.errors import StrataError


class TokenizerError(StrataError):
    """The model's vocabulary is missing, malformed or of a kind that is not implemented."""


class ChatTemplateError(StrataError):
    """A chat template is missing, does not parse, raised an exception or grew past its limit."""


class ChatTemplateBusy(StrataError):
    """There is no memory for rendering a stranger's template at the moment; try again later."""
