"""What quantisations and KV types cost in quality, where it was measured, and of which model."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

from strata.engine.kv_quality import KVChoice
from strata.errors import UsageError
from strata.formats.errors import shown
from strata.records import dataclass

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


def kv_choices(quality: str) -> tuple[KVChoice, ...]:
    """KV types that are known to lose no more than ``quality`` says, the most exact first.

    That is ``exact`` or a percentage such as ``0.1%``, by which tokens may become less likely in
    the mean (e to the KL divergence). UsageError for what is neither."""
    exact = KVChoice("f16", "nothing is lost against f16")
    if quality == "exact":
        return (exact,)
    try:
        bound = float(quality.removesuffix("%")) / 100
    except ValueError:
        bound = math.nan
    if not quality.endswith("%") or not 0 < bound <= 1:
        raise UsageError(f"quality is exact, or a loss such as 0.1% or 1%, not {shown(quality)}")
    known = known_quality()
    fit = sorted((cost.kl, name) for name, cost in known.kv.items() if math.expm1(cost.kl) <= bound)
    return (
        exact,
        *(
            KVChoice(
                name,
                f"tokens become {100 * math.expm1(kl):.2g} % less likely with {known.model}; of "
                "other models that was not measured",
            )
            for kl, name in fit
        ),
    )


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
