"""What mixtures of experts are put together from: their settings, tensors and feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, Literal

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import MAX_LAYERS, MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder
from strata.records import dataclass

MAX_EXPERTS = 4096
_LOWEST = -3.0e38
_SCORINGS = {1: "softmax", 2: "sigmoid", 3: "none", 4: "sqrt_softplus"}
# What weights are divided by is at least this: llama.cpp's bound, and what transformers adds.
_LEAST_SUM = {"gguf": 2.0**-14, "huggingface": 1e-20}


@dataclass(frozen=True)
class HuggingFaceNames:
    """What a family's checkpoints call a mixture, below ``{p}layers.{i}.``."""

    block: str = "mlp"
    router: str = "gate"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = "shared_experts"
    selection: str = "gate.e_score_correction_bias"


@dataclass(frozen=True)
class Routing:
    """How a family's mixture differs from Mixtral's: softmax over all experts, weights of the
    chosen renormalised.

    ``scoring`` and ``renormalise`` as ``read_mixture`` has them (None: as the file says);
    ``every``: the file may say that only each so-manieth layer has some; ``split``: where the file
    does not state an expert's width, the chosen ones have that of the feed-forward together;
    ``attrs`` are further attributes of the Op.

    ``router``: what it reads, the feed-forward's input or the layer's. ``beside``: a plain
    feed-forward that a layer has beside its experts, all added (``entry``: it is as wide as the
    model, and the experts read the layer's input by a norm of their own), or that it may have, and
    the sum is divided by the square root of 2 (``mean``). ``halved``: experts and shared ones are
    averaged. ``biased``: routers and experts may have biases. ``chunks``:
    what the experts give goes on through smaller ones, each of which some neighbours share, and
    what those give is added, scaled.
    """

    scoring: str = "softmax"
    renormalise: bool | None = True
    every: bool = False
    split: bool = False
    router: Literal["input", "entry"] = "input"
    beside: Literal["", "entry", "mean"] = ""
    halved: bool = False
    biased: bool = False
    chunks: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixture:
    """The sizes of a mixture, the layers that have one, and the attributes of its Op.

    ``shared`` is the width of the shared experts together, 0 where there are none.
    """

    experts: int
    ffn: int
    shared: int
    layers: tuple[bool, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    names: HuggingFaceNames = field(default_factory=HuggingFaceNames)


def read_mixture(
    c: Config,
    *,
    scoring: str = "softmax",
    renormalise: bool | None = None,
    ffn: int | None = None,
    shared: int | None = None,
    scaled: bool = True,
    dense: int = 0,
    names: HuggingFaceNames | None = None,
    **attrs: Any,
) -> Mixture | None:
    """The mixture that a file describes; None where it has no experts.

    The rest are a family's: its ``scoring`` where the file does not say, whether weights are
    renormalised (None: as the file says), the widths where it names none, whether the file's scale
    of weights counts, how many layers at the beginning have no experts where it does not say.
    """
    keys = c.keys
    experts = keys.integer("experts", 0, low=0, high=MAX_EXPERTS)
    if not experts:
        return None
    top_k = keys.integer("top_k", high=experts)
    stated = keys.integer("expert_scoring", 0, low=0, high=len(_SCORINGS))
    if renormalise is None:
        renormalise = keys.flag("expert_norm", False)
    scale = keys.number("expert_scale", 0.0, high=1e6) if scaled else 0.0
    width = keys.integer("expert_ffn", 0, low=0, high=16 * MAX_WIDTH) or ffn or c.ffn
    if shared is None:
        count = keys.integer("shared_experts", 0, low=0, high=MAX_EXPERTS)
        shared = keys.integer("shared_ffn", 0, low=0, high=16 * MAX_WIDTH) or count * width
    first = keys.integer("dense_layers", dense, low=0, high=c.layers)
    kinds = keys.texts("ffn_kinds", c.layers, ("dense", "sparse"))
    groups = max(1, keys.integer("expert_groups", 1, low=0, high=experts))
    if experts % groups:
        raise ConfigError(f"'{keys.find('expert_groups')[0]}' is {groups}: no divisor of {experts}")
    kept = max(1, keys.integer("expert_groups_kept", groups, low=0, high=groups))
    return Mixture(
        experts,
        width,
        shared,
        tuple(i >= first if kinds is None else kinds[i] == "sparse" for i in range(c.layers)),
        {
            "top_k": top_k,
            "scoring": _SCORINGS.get(stated, scoring),
            "renormalise": renormalise,
            "least_sum": _LEAST_SUM[keys.kind],
            "scale": scale or 1.0,
            "groups": groups,
            "groups_kept": kept if groups > 1 else 1,
            **attrs,
        },
        names or HuggingFaceNames(),
    )


def settled(c: Config, r: Routing, names: HuggingFaceNames | None = None) -> Mixture | None:
    """The mixture of a file of a family; None where it has no experts."""
    chosen = c.keys.integer("top_k", 1, low=0) if r.split else 1
    attrs = dict(r.attrs)
    if r.scoring == "sparsemixer":
        attrs["jitter"] = 2 * c.keys.number("router_jitter", 0.01, high=1.0)
    m = read_mixture(
        c,
        scoring=r.scoring,
        renormalise=r.renormalise,
        ffn=c.ffn // max(chosen, 1),
        names=names,
        **attrs,
    )
    if m is None or not r.every or c.keys.stated("ffn_kinds"):
        return m
    step = c.keys.integer("expert_step", 1)
    last = c.keys.integer("last_expert_layer", -1, low=-1, high=MAX_LAYERS) % MAX_LAYERS
    some = (on and (i + 1) % step == 0 and i <= last for i, on in enumerate(m.layers))
    return replace(m, layers=tuple(some))


def kinds_of(keys: Keys, layers: int) -> dict[str, Any]:
    """Which layers have experts, of a directory that has a list of 0 and 1 for it."""
    routed = keys.flags("routed_layers", layers)
    if routed is None or keys.find("ffn_kinds")[1] is not None:
        return {}
    return {"ffn_kinds": ["sparse" if on else "dense" for on in routed]}


DENSE = r"blk\.\d+\.ffn_(gate|up|down)\.\w+"
"""What ``where_routed`` leaves unread."""


def where_routed(c: Config, file: ModelFile, m: Mixture | None) -> Mixture | None:
    """The mixture in those layers of a GGUF file that have a router."""
    names = (f"blk.{i}.ffn_gate_inp.weight" for i in range(c.layers))
    return m and replace(m, layers=tuple(name in file.tensors for name in names))


def mixture_tensors(
    c: Config, m: Mixture | None, *, bias: bool = False, gate: bool = True
) -> dict[str, Tensor]:
    """Tensors of the feed-forward of every layer, with experts or without.

    ``bias``: routers and experts have some. Tensors of both kinds of layers are optional: which of
    them a layer needs is asked for when it is built, by ``feed_forward``.
    """
    tensors = decoder.gated_tensors(c)
    if m is None:
        return tensors
    tensors = {} if all(m.layers) else {name: _may_be(t) for name, t in tensors.items()}
    n, stored = m.names, "{p}layers.{i}." + m.names.block
    some = not all(m.layers)
    tensors["blk.{i}.ffn_gate_inp.weight"] = Tensor(
        f"{stored}.{n.router}.weight", (m.experts, c.width), some
    )
    inside, outside = (m.experts, m.ffn, c.width), (m.experts, c.width, m.ffn)
    kinds = [("up", n.up, inside), ("down", n.down, outside)]
    kinds += [("gate", n.gate, inside)] if gate else []
    for name, theirs, shape in kinds:
        at = {"gate": 0, "up": m.ffn}.get(name)
        fused = None
        if name == "down" and c.keys.kind != "gguf":
            fused = Part("", f"{stored}.experts.down_proj", 0, c.width)
        elif at is not None:
            fused = Part(
                "blk.{i}.ffn_gate_up_exps.weight", f"{stored}.experts.gate_up_proj", at, 2 * m.ffn
            )
        tensors[f"blk.{{i}}.ffn_{name}_exps.weight"] = Tensor(
            f"{stored}.experts.{{e}}.{theirs}.weight", shape, some, part=fused
        )
        if c.keys.kind == "gguf":
            tensors[f"blk.{{i}}.ffn_{name}_exps.scale"] = Tensor(None, (m.experts,), True)
    if bias:
        tensors["blk.{i}.ffn_gate_inp.bias"] = Tensor(
            f"{stored}.{n.router}.bias", (m.experts,), True
        )
        for name, _, shape in kinds:
            tensors[f"blk.{{i}}.ffn_{name}_exps.bias"] = Tensor(None, shape[:2], True)
    # Some writers leave the kind out of its name.
    tensors["blk.{i}.exp_probs_b.bias"] = Tensor(
        f"{stored}.{n.selection}",
        (m.experts,),
        True,
        part=Part("blk.{i}.exp_probs_b", "", 0, m.experts),
        unit_axes=True,
    )
    if m.shared:
        for name, pair in (
            ("gate", (m.shared, c.width)),
            ("up", (m.shared, c.width)),
            ("down", (c.width, m.shared)),
        ):
            tensors[f"blk.{{i}}.ffn_{name}_shexp.weight"] = Tensor(
                f"{stored}.{n.shared}.{name}_proj.weight", pair, some
            )
            tensors |= decoder.scale_tensors(c, f"ffn_{name}_shexp")
        # How much of it counts, where a family asks the row.
        tensors["blk.{i}.ffn_gate_inp_shexp.weight"] = Tensor(
            f"{stored}.shared_expert_gate.weight", (1, c.width), True, unit_axes=True
        )
    return tensors


def _may_be(tensor: Tensor) -> Tensor:
    return Tensor(
        tensor.huggingface, tensor.shape, True, tensor.transform, tensor.part, tensor.apart
    )


def routed(
    b: Builder,
    catalog: Catalog,
    m: Mixture,
    x: str,
    i: int,
    *,
    router_input: str | None = None,
    gate: bool = True,
    scaled: bool = True,
    **attrs: Any,
) -> str:
    """The chosen experts' weighted sum; ``router_input`` where the router reads another value,
    ``scaled`` whether scales beside the experts count."""
    name = f"blk.{i}.ffn_"
    with b.unit("ffn"):
        logits = b.matmul(
            x if router_input is None else router_input,
            f"{name}gate_inp.weight",
            decoder.present(catalog, f"{name}gate_inp.bias"),
        )
    parts = ("gate", "up", "down") if gate else ("up", "down")
    extras = {
        f"{part}_{kind}": decoder.present(catalog, f"{name}{part}_exps.{kind}")
        for part in parts
        for kind in (("bias", "scale") if scaled else ("bias",))
    }
    with b.unit("experts"):
        return b.experts(
            x,
            logits,
            f"{name}up_exps.weight",
            f"{name}down_exps.weight",
            gate=f"{name}gate_exps.weight" if gate else None,
            selection=decoder.present(catalog, f"blk.{i}.exp_probs_b.bias"),
            **extras,
            **{**m.attrs, **attrs},
        )


def chunk_tensors(c: Config, m: Mixture) -> dict[str, Tensor]:
    """The smaller experts of a layer, which neighbours share."""
    each = c.keys.integer("chunk_experts", high=m.experts)
    if m.experts % each:
        key = c.keys.find("chunk_experts")[0]
        raise ConfigError(f"'{key}' is {each}: no divisor of {m.experts}")
    ffn = c.keys.integer("chunk_ffn", 0, low=0, high=16 * MAX_WIDTH) or c.head_dim
    inside = (m.experts // each, ffn, c.width)
    shapes = {"gate": inside, "up": inside, "down": (inside[0], c.width, ffn)}
    return {
        f"blk.{{i}}.ffn_{part}_chexps.weight": Tensor(None, shape) for part, shape in shapes.items()
    }


def with_chunks(
    b: Builder, catalog: Catalog, c: Config, m: Mixture, x: str, out: str, i: int
) -> str:
    """``out``, what the experts of layer i gave for x, and what smaller ones give for that.

    As llama.cpp has it: which of them, and with what weights, say the scores of x that have their
    numbers.
    """
    name, each = f"blk.{i}.ffn_", c.keys.integer("chunk_experts")
    with b.unit("ffn"):
        logits = b.matmul(x, f"{name}gate_inp.weight")
    with b.unit("experts"):
        more = b.experts(
            out,
            logits,
            f"{name}up_chexps.weight",
            f"{name}down_chexps.weight",
            gate=f"{name}gate_chexps.weight",
            **{
                **m.attrs,
                "shared_by": each,
                "top_k": min(m.attrs["top_k"], m.experts // each),
            },
        )
    return b.add(out, b.scale(more, c.keys.number("chunk_scale")))


def shared(
    b: Builder,
    catalog: Catalog,
    x: str,
    i: int,
    function: str = "silu",
    *,
    scaled: bool = True,
    limit: float = 0.0,
) -> str:
    """The feed-forward that every row goes through beside its experts; ``limit`` as the Op's where
    it clamps ``silu``."""
    name = f"blk.{i}.ffn_"
    with b.unit("ffn"):
        gate = decoder.product(b, catalog, x, f"{name}gate_shexp", scaled=scaled)
        up = decoder.product(b, catalog, x, f"{name}up_shexp", scaled=scaled)
        if limit:
            gate = b.clamp(b.activation(gate, function), _LOWEST, limit)
            mixed = b.mul(gate, b.clamp(up, -limit, limit))
        else:
            mixed = b.glu(gate, up, function)
        out = decoder.product(b, catalog, mixed, f"{name}down_shexp", scaled=scaled)
        if not catalog.has(f"{name}gate_inp_shexp.weight"):
            return out
        counts = b.activation(b.matmul(x, f"{name}gate_inp_shexp.weight"), "sigmoid")
    return b.mul(out, counts)


def feed_forward(
    b: Builder,
    catalog: Catalog,
    m: Mixture | None,
    x: str,
    i: int,
    function: str = "silu",
    *,
    scaled: bool = True,
    router_input: str | None = None,
    limits: tuple[float, float] = (0.0, 0.0),
) -> str:
    """A layer's experts and shared experts, or the plain feed-forward of a layer without.

    ``scaled`` is False for families of which llama.cpp does not apply the scales beside experts;
    ``router_input`` where the router reads another value. ``limits`` bound the activated gate and
    up of experts and of shared ones, where they are not 0.
    """
    if m is None or not m.layers[i]:
        return decoder.gated(b, catalog, x, i, function, scaled=scaled)
    options: dict[str, Any] = {"clamp": "silu", "limit": limits[0]} if limits[0] else {}
    options |= {"router_input": router_input, "scaled": scaled, "function": function}
    out = routed(b, catalog, m, x, i, **options)
    if not m.shared:
        return out
    return b.add(out, shared(b, catalog, x, i, function, scaled=scaled, limit=limits[1]))


def without_feed_forward(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A family's tensors but for those of its feed-forward."""
    inner = ("blk.{i}.ffn_gate.", "blk.{i}.ffn_up.", "blk.{i}.ffn_down.")
    return {name: t for name, t in tensors.items() if not name.startswith(inner)}


def read_limits(c: Config, name: str = "expert_clamp") -> list[dict[str, Any]]:
    """What bounds gates and ups of each layer, as attributes of its Op: none where it is 0."""
    limits = c.keys.numbers(name, c.layers, high=1e6) if c.keys.stated(name) else [0.0] * c.layers
    return [{"clamp": "inputs", "limit": n} if n > 1e-6 else {} for n in limits]
