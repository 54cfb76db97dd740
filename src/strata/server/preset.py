"""What holds for a model where a request says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strata.decode.defaults import SamplingDefaults


@dataclass(frozen=True)
class Preset:
    """A ``system`` prompt for conversations that begin with none, and parameters of sampling."""

    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

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
