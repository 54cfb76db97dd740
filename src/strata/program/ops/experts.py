"""Mixtures of experts: each row goes through the few feed-forward networks that a router chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.dense import ACTIVATIONS
from strata.program.ops.signature import Signature, rows_of
from strata.program.program import ProgramError, Shape, Value

SCORINGS = ("softmax", "sigmoid", "sqrt_softplus", "none", "sparsemixer")
"""How a router's logit becomes the score of an expert; softmax is over all of them.

``sparsemixer`` (arXiv:2409.12136) chooses by logits, one after the other, and scores each by a
softmax over those of the rest that are near it: whose distance is at most ``jitter`` times the
larger of the best logit and their own magnitude."""

CLAMPS = ("none", "inputs", "silu", "oai", "situ")
"""What a ``limit`` bounds. ``inputs``: the gate from above and up on both sides; ``silu``: the
activated gate from above and up on both sides; ``oai``: as ``inputs``, then
gate * sigmoid(1.702 * gate) * (up + 1); ``situ``: limit * tanh(gate / limit) * sigmoid(gate) times
up_limit * tanh(up / up_limit), or up where ``up_limit`` is 0."""

OAI_ALPHA = 1.702

_BIASES = ("gate_bias", "up_bias", "down_bias")
_SCALES = ("gate_scale", "up_scale", "down_scale")
EXPERT_DEFAULTS: Mapping[str, Any] = {
    "scoring": "softmax",
    "select": "scores",
    "softmax_chosen": False,
    "renormalise": False,
    "least_sum": 2.0**-14,
    "scale": 1.0,
    "groups": 1,
    "groups_kept": 1,
    "group_score": "top2",
    "function": "silu",
    "clamp": "none",
    "limit": 0.0,
    "up_limit": 0.0,
    "weigh_input": False,
    "jitter": 0.0,
    "shared_by": 1,
}
EXTRAS = ("gate", *_BIASES, *_SCALES, "selection")


def expert_operands(values: list[Value], attrs: Mapping[str, Any]) -> dict[str, Value]:
    """The operands of an ``experts`` Op by name."""
    return dict(zip(("x", "logits", "up", "down", *attrs["extras"]), values, strict=True))


def _experts(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    named = expert_operands(values, attrs)
    x, logits, up = named["x"], named["logits"], named["up"]
    experts = logits.width // attrs["shared_by"]
    if len(up.shape) != 3:
        raise ProgramError(f"experts: '{up.name}' {up.shape} has not the axes of experts")
    ffn = up.shape[1]
    inside, outside = (experts, ffn, x.width), (experts, x.width, ffn)
    shapes: dict[str, Shape] = {
        "up": inside,
        "gate": inside,
        "down": outside,
        "up_bias": (experts, ffn),
        "gate_bias": (experts, ffn),
        "down_bias": (experts, x.width),
        "selection": (logits.width,),
        **dict.fromkeys(_SCALES, (experts,)),
    }
    for name, shape in shapes.items():
        if name in named and named[name].shape != shape:
            raise ProgramError(
                f"experts: '{named[name].name}' has shape {named[name].shape}, not {shape}"
            )
    if rows_of(logits) != rows_of(x):
        raise ProgramError(f"experts: '{x.name}' and '{logits.name}' have other rows")
    if experts * attrs["shared_by"] != logits.width:
        raise ProgramError(f"experts: {attrs['shared_by']} share one, of {logits.width}")
    if attrs["scoring"] == "sparsemixer" and ("selection" in named or attrs["groups"] > 1):
        raise ProgramError("experts: sparsemixer chooses by logits alone")
    _check(attrs, logits.width, gated="gate" in named)
    return x.shape


def _check(attrs: Mapping[str, Any], experts: int, *, gated: bool) -> None:
    top_k, groups, kept = attrs["top_k"], attrs["groups"], attrs["groups_kept"]
    if not 1 <= top_k <= experts:
        raise ProgramError(f"experts: {top_k} of {experts} cannot be chosen")
    if groups < 1 or experts % groups or not 1 <= kept <= groups:
        raise ProgramError(f"experts: {kept} of {groups} groups of {experts} experts")
    if kept * (experts // groups) < top_k:
        raise ProgramError(f"experts: {kept} groups of {groups} hold fewer than {top_k} experts")
    for name, known in (
        ("scoring", SCORINGS),
        ("select", ("scores", "logits")),
        ("group_score", ("max", "top2")),
        ("function", ACTIVATIONS),
        ("clamp", CLAMPS),
    ):
        if attrs[name] not in known:
            raise ProgramError(f"experts: unknown {name} '{attrs[name]}'; known: {known}")
    if attrs["clamp"] != "none" and (not gated or attrs["function"] != "silu"):
        raise ProgramError("experts: only gates with silu are clamped")
    if attrs["clamp"] == "situ" and not attrs["limit"] > 0:
        raise ProgramError("experts: situ reaches up to a limit above 0")


def _flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    del context
    named = expert_operands(values, attrs)
    products = 3 if "gate" in named else 2
    ffn = named["up"].shape[1]
    assert isinstance(ffn, int)
    return int(2 * rows * attrs["top_k"] * products * ffn * named["x"].width)


EXPERTS: Mapping[str, Signature] = {
    # out[t] = sum over the chosen e, by ascending e, of weight[t, e] * down[e](act(gate[e](x[t])) *
    # up[e](x[t])). Scores come from the logits by `scoring`; `top_k` experts are chosen by score
    # (or logit: `select`) plus `selection`, the lowest index of equals first, and only out of the
    # `groups_kept` best groups. Their scores are the weights: put through a softmax of their own
    # (`softmax_chosen`), divided by their sum, at least `least_sum` (`renormalise`), times `scale`.
    # Where so many neighbours share an expert (`shared_by`), the chosen ones' experts come in their
    # place, with the scores of those numbers.
    # With `weigh_input` a weight multiplies what goes into the expert instead of what comes out.
    # Products are scaled by their expert's *_scale before the bias is added.
    "experts": Signature(
        ("x", "logits", "up", "down"),
        (
            "top_k",
            "scoring",
            "select",
            "softmax_chosen",
            "renormalise",
            "least_sum",
            "scale",
            "groups",
            "groups_kept",
            "group_score",
            "function",
            "clamp",
            "limit",
            "up_limit",
            "weigh_input",
            "jitter",
            "shared_by",
            "extras",
        ),
        _experts,
        _flops,
        reads={"gate": "routed", "up": "routed", "down": "routed"},
        as_floats=_BIASES,
        extras=EXTRAS,
    ),
}
