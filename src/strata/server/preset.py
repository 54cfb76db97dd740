"""What holds for a model where a request says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from strata.decode.defaults import SamplingDefaults
from strata.records import dataclass


@dataclass(frozen=True)
class Preset:
    """A ``system`` prompt for conversations that begin with none, parameters of sampling, and
    whether the model thinks, or how much (see ``thinking_variables``)."""

    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reasoning: bool | str | None = None

    def defaults(self, stated: SamplingDefaults) -> SamplingDefaults:
        """What the model's authors state, with what this says instead."""
        if not self.sampling:
            return stated
        said = {k: tuple(v) if k == "stop" else v for k, v in self.sampling.items()}
        return replace(stated, params=stated.with_said(said))

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """A conversation with the system prompt, unless it has one."""
        if not self.system or any(m["role"] in ("system", "developer") for m in messages):
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def variables(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the chat template, with what a request said of them."""
        return {**thinking_variables(self.reasoning), **said}


def thinking_variables(wanted: bool | str | None) -> dict[str, Any]:
    """The variables of chat templates that say whether the model thinks, and how much: ``none``,
    ``low``, ``medium``, ``high`` or what else a family knows."""
    if wanted is None:
        return {}
    thinks = wanted not in (False, "none")
    effort = {"reasoning_effort": wanted} if isinstance(wanted, str) and thinks else {}
    # Some families call it the one, some the other.
    return {"enable_thinking": thinks, "thinking": thinks, **effort}
