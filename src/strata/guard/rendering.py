"""Rendering a stranger's templates: this side of a ward for templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from threading import Lock
from typing import Any

from strata.guard import limits
from strata.guard.account import Account
from strata.guard.errors import TemplateFailure
from strata.guard.nursery import Ward, nursery


class GuardedRenderer:
    """One ward for all templates of a model, opened when it is first asked. Any thread may call.

    ``nbytes`` it may take for a short conversation; ``account`` is where that is entered.
    """

    def __init__(self) -> None:
        self.nbytes = limits.TEMPLATE_BYTES
        self.account: Account | None = None
        self.ward: Ward | None = None
        self._lock = Lock()

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text that a template gives; TemplateFailure, GuardError, or RecursionError for
        variables that are nested too deeply."""
        asked = json.dumps(
            {"source": source, "variables": variables, "seconds": limits.TEMPLATE_S},
            ensure_ascii=False,
        )
        payload = asked.encode("utf-8", "surrogatepass")
        del asked
        with self._lock:
            try:
                if self.ward is None or not self.ward.end.alive:
                    self.ward = nursery().open("template", nbytes=self.nbytes, account=self.account)
                self.ward.send(payload)
                answer = self.ward.receive(
                    seconds=limits.TEMPLATE_S,
                    most=4 * limits.template_characters(len(payload)),
                    memory=limits.template_bytes(len(payload), self.nbytes),
                )
            except BaseException:
                # Nobody may be given the answer to this.
                if self.ward is not None:
                    self.ward.end()
                raise
        text = answer[1:].decode("utf-8", "surrogatepass")
        if answer[:1] != b"+":
            raise TemplateFailure(text)
        return text
