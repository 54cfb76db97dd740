"""What quantisations and KV types cost in quality, where it was measured, and of which model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("known.json")
"""Made by ``tools/make_known_quality.py`` from results of ``bench``."""


@dataclass(frozen=True)
class KnownCost:
    """Against the unquantised model: the mean KL divergence in nats a token, and how often the
    likeliest token stayed the same. ``type`` is the block type of most of the weights: where rows
    are no whole number of blocks a file has others than its name says, and tells nothing of files
    that have them."""

    kl: float
    same_top: float
    type: str = ""


@dataclass(frozen=True)
class KnownQuality:
    """``model`` is what was measured, ``how`` a line about it; costs by names of quantisations and
    of KV types."""

    model: str
    how: str
    weights: dict[str, KnownCost]
    kv: dict[str, KnownCost]


@cache
def known_quality() -> KnownQuality:
    """The table that comes with Strata."""
    said = json.loads(TABLE.read_text(encoding="utf-8"))
    weights, kv = (
        {name: KnownCost(**cost) for name, cost in said[part].items()} for part in ("weights", "kv")
    )
    return KnownQuality(said["model"], said["how"], weights, kv)


def kv_cost_line(kv_type: str) -> str:
    """What a KV type costs, in a line for people."""
    known = known_quality()
    cost = known.kv.get(kv_type)
    if cost is None:
        return (
            f"what KV in {kv_type} costs in quality was not measured: `strata quality MODEL --base "
            f"MODEL --kv-type {kv_type} --base-kv-type f16 --text FILE` does"
        )
    return (
        f"KV in {kv_type} costs {known.model} a KL divergence of {cost.kl:.2g} and leaves "
        f"{100 * cost.same_top:.1f} % of the likeliest tokens; of other models that was not "
        "measured"
    )
