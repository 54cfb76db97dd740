"""Rendering a chat template: in a ward, and in this process if it is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from strata.guard.errors import TemplateFailure
from strata.guard.sandbox import ChatEnvironment

_MESSAGE = 400
"""Characters of an error's message."""


def render(
    source: str,
    variables: Mapping[str, Any],
    most: int = sys.maxsize,
    each: Callable[[], None] | None = None,
) -> str:
    """The text that a template gives, of at most ``most`` characters; raises TemplateFailure.
    ``each`` is called for each part of it."""
    parts: list[str] = []
    size = 0
    try:
        for part in _compiled(source).generate(dict(variables)):
            size += len(part)
            if size > most:
                raise TemplateFailure(f"the chat template wrote more than {most} characters")
            parts.append(part)
            if each is not None:
                each()
        return "".join(parts)
    except TemplateFailure:
        raise
    except TemplateSyntaxError as error:
        reason = f"does not parse: {error.message} (line {error.lineno})"
    except TemplateError as error:
        reason = f"failed: {error.message}"
    except RecursionError:
        reason = "is nested or calls itself too deeply"
    except MemoryError:
        reason = "takes more memory than a chat template may"
    except SyntaxError as error:
        # What Python says of the program that jinja2 makes of it.
        reason = f"does not parse: {error.msg}"
    except Exception as error:
        # Whatever a template trips over in the messages it was given.
        reason = f"failed: {type(error).__name__}: {error}"
    raise TemplateFailure(f"the chat template {reason}"[:_MESSAGE])


@lru_cache(maxsize=4)
def _compiled(source: str) -> jinja2.Template:
    return ChatEnvironment().from_string(source)
