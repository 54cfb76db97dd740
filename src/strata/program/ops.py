"""The Ops: for each kind its operands, attributes, shape rule and arithmetic.

The semantics of every kind are defined by one obvious function in ``strata.backends.reference``.
Batch inputs (``tokens``, ``positions``, ``logits_indices``) and the state of sequences are not
operands: they belong to the step, and the Ops that need them say so in their signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from strata.program.program import Program, ProgramError, Shape, Value

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@dataclass(frozen=True)
class Op:
    """One operation: kind, operands by name, one output, attributes (plain JSON values)."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)


Reads = Literal["all", "rows", "routed"]
"""What a sweep reads of a weight: all of it; the ``rows`` of a table that the step's tokens or
positions name; or, ``routed``, those entries of its first axis (experts) that a router chooses."""

ShapeRule = Callable[[list[Value], Mapping[str, Any]], Shape]
FlopsRule = Callable[[list[Value], Mapping[str, Any], int, int], int]
KeptRule = Callable[[list[Value], Mapping[str, Any]], int]
StateKind = Literal["kv", "recurrent"]


@dataclass(frozen=True)
class Signature:
    """What a kind of Op accepts and costs.

    ``operands`` names the inputs, optional ones end in ``?``. ``attrs`` are the required attribute
    names. ``shape`` gives the output's shape or raises ProgramError. ``flops`` counts floating
    point operations for (operands, attrs, rows, context positions attended per row). ``reads`` says
    how weights among the operands are read, where that is not ``all``.

    ``state`` says which state of its layer the Op touches: ``kv``, which it reads for every
    position that it sees, ``recurrent``, which it reads and writes once a step, or none. ``kept``
    counts the numbers of it: a position's, or a sequence's. ``as_floats`` are weights of two axes
    that are no factors of a product, but read as plain float32 arrays.
    """

    operands: tuple[str, ...]
    attrs: tuple[str, ...]
    shape: ShapeRule
    flops: FlopsRule
    from_step: tuple[str, ...] = ()
    reads: Mapping[str, Reads] = field(default_factory=dict)
    state: StateKind | None = None
    kept: KeptRule = lambda values, attrs: 0
    as_floats: tuple[str, ...] = ()


def _fail(message: str) -> ProgramError:
    return ProgramError(message)


def _rows(v: Value) -> Shape:
    return v.shape[:-1]


def _same(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    first = values[0]
    for other in values[1:]:
        if other.shape != first.shape:
            raise _fail(f"'{first.name}' {first.shape} and '{other.name}' {other.shape} must match")
    return first.shape


def _unary(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return values[0].shape


def _table(value: Value) -> Value:
    if len(value.shape) != 2:
        raise _fail(f"'{value.name}' {value.shape} is no table of rows")
    return value


def _embed(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return ("T", _table(values[0]).width)


def _add_positions(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, table = values
    if _table(table).width != x.width:
        raise _fail(f"'{table.name}' {table.shape} cannot be added to '{x.name}' {x.shape}")
    return x.shape


def _norm(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, *parameters = values
    for p in parameters:
        if len(p.shape) != 1 or x.width % p.width:
            raise _fail(f"norm weight '{p.name}' {p.shape} does not divide '{x.name}' {x.shape}")
    return x.shape


def _matmul(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, w, *bias = values
    if len(w.shape) != 2 or w.width != x.width:
        raise _fail(f"'{x.name}' {x.shape} cannot be multiplied with '{w.name}' {w.shape}")
    if bias and bias[0].shape != (w.shape[0],):
        raise _fail(f"bias '{bias[0].name}' {bias[0].shape} does not fit '{w.name}' {w.shape}")
    return (*_rows(x), w.shape[0])


def _activation(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if attrs["function"] not in ACTIVATIONS:
        raise _fail(f"unknown activation '{attrs['function']}'; known: {', '.join(ACTIVATIONS)}")
    return _same(values, attrs)


def _rope(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x = values[0]
    head, frequencies = attrs["head_dim"], attrs["inv_freq"]
    if len(values) > 1 and values[1].shape != (len(frequencies),):
        raise _fail(f"rope of {len(frequencies)} frequencies: '{values[1].name}' {values[1].shape}")
    if x.width % head or 2 * len(frequencies) > head:
        raise _fail(f"rope of {2 * len(frequencies)} of {head} does not fit '{x.name}' {x.shape}")
    if attrs["style"] not in ("neox", "interleaved"):
        raise _fail(f"unknown rope style '{attrs['style']}'")
    return x.shape


def _attention(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    q, *kept = values
    heads, kv_heads, k_dim, v_dim = (attrs[n] for n in ("heads", "kv_heads", "k_dim", "v_dim"))
    widths = [kv_heads * k_dim, kv_heads * v_dim][: len(kept)]
    if (
        heads % kv_heads
        or q.width != heads * k_dim
        or [x.width for x in kept] != widths
        or any(_rows(x) != _rows(q) for x in kept)
    ):
        operands = ", ".join(f"{n} {x.shape}" for n, x in zip("qkv", values, strict=False))
        raise _fail(
            f"attention: {operands} are not {heads} and {kv_heads} heads with keys of {k_dim} "
            f"and values of {v_dim}"
        )
    if len(kept) == 1 and v_dim > k_dim:
        raise _fail(f"attention: values of {v_dim} are no part of keys of {k_dim}")
    return (*_rows(q), heads * v_dim)


def _attention_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    per_head = attrs["k_dim"] + (0 if len(values) == 2 else attrs["v_dim"])
    return int(attrs["kv_heads"] * per_head)


def _short_conv(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, weight = values
    if len(weight.shape) != 2 or weight.shape[0] != x.width:
        raise _fail(f"short_conv: '{weight.name}' {weight.shape} has no taps for each of {x.shape}")
    if weight.width < 2:
        raise _fail(f"short_conv: '{weight.name}' {weight.shape} has one tap and keeps nothing")
    return x.shape


def _select(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return ("R", values[0].width)


def _per_element(n: int) -> FlopsRule:
    def flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
        del attrs, context
        return n * rows * values[0].width

    return flops


def _matmul_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    del attrs, context
    n, k = values[1].shape
    assert isinstance(n, int)
    assert isinstance(k, int)
    return 2 * rows * n * k


def _attention_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    window = attrs["window"]
    keys = min(context, window) if window else context
    return int(2 * rows * keys * attrs["heads"] * (attrs["k_dim"] + attrs["v_dim"]))


SIGNATURES: Mapping[str, Signature] = {
    # out[t] = table[tokens[t]] * scale
    "embed": Signature(
        ("table",),
        ("scale",),
        _embed,
        lambda v, a, r, c: r * v[0].width,
        ("tokens",),
        {"table": "rows"},
    ),
    # out[t] = x[t] + table[positions[t] + offset]
    "add_positions": Signature(
        ("x", "table"),
        ("offset",),
        _add_positions,
        _per_element(1),
        ("positions",),
        {"table": "rows"},
    ),
    # groups of len(weight) along the last axis: x / sqrt(mean(x^2) + eps) * weight
    "rms_norm": Signature(("x", "weight"), ("eps",), _norm, _per_element(4)),
    # (x - mean) / sqrt(var + eps) * weight + bias
    "layer_norm": Signature(("x", "weight", "bias?"), ("eps",), _norm, _per_element(6)),
    # out = x @ weight.T + bias
    "matmul": Signature(("x", "weight", "bias?"), (), _matmul, _matmul_flops),
    # rotate the first 2*len(inv_freq) dims of each head; angle = position * inv_freq / factors;
    # 'neox' pairs (i, i + n/2), 'interleaved' pairs (2i, 2i+1); cos and sin times mscale
    "rope": Signature(
        ("x", "factors?"),
        ("head_dim", "inv_freq", "style", "mscale"),
        _rope,
        _per_element(3),
        ("positions",),
    ),
    # append k, v to the layer's KV, then causal attention of each row over its own sequence;
    # scores = softcap(q.k * scale), keys older than `window` positions are not seen (0: all are).
    # Without v the value is the first v_dim elements of each key; without k and v nothing is
    # appended: `layer` is the one that keeps what is read, and has appended already
    "attention": Signature(
        ("q", "k?", "v?"),
        ("layer", "heads", "kv_heads", "k_dim", "v_dim", "scale", "window", "softcap"),
        _attention,
        _attention_flops,
        ("positions",),
        state="kv",
        kept=_attention_kept,
    ),
    # out[t, c] = sum over j of weight[c, j] * x[t - (taps - 1) + j, c]; x is 0 before the sequence
    # begins, and the layer's state is the last taps - 1 rows of x
    "short_conv": Signature(
        ("x", "weight"),
        ("layer",),
        _short_conv,
        lambda v, a, r, c: 2 * r * v[0].width * v[1].width,
        state="recurrent",
        kept=lambda v, a: (v[1].width - 1) * v[0].width,
        as_floats=("weight",),
    ),
    # out = act(gate) * up
    "glu": Signature(("gate", "up"), ("function",), _activation, _per_element(6)),
    "activation": Signature(("x",), ("function",), _activation, _per_element(5)),
    "add": Signature(("a", "b"), (), _same, _per_element(1)),
    # out = x * factor
    "scale": Signature(("x",), ("factor",), _unary, _per_element(1)),
    # out = cap * tanh(x / cap)
    "softcap": Signature(("x",), ("cap",), _unary, _per_element(6)),
    # out = x[logits_indices]: only rows whose logits are wanted go on
    "select": Signature(("x",), (), _select, lambda v, a, r, c: 0, ("logits_indices",)),
}


def reads(op: Op) -> dict[str, Reads]:
    """How an Op reads each of its operands, if that is a weight."""
    signature = SIGNATURES[op.kind]
    names = (name.rstrip("?") for name in signature.operands)
    # Optional operands come last, and may be missing.
    pairs = zip(names, op.inputs, strict=False)
    return {value: signature.reads.get(name, "all") for name, value in pairs}


def float_operands(program: Program) -> frozenset[str]:
    """Names of a Program's weights that its Ops read as plain float32 arrays, whatever their
    shape."""
    return frozenset(
        name
        for op in program.ops
        for operand, name in zip(SIGNATURES[op.kind].operands, op.inputs, strict=False)
        if operand in SIGNATURES[op.kind].as_floats
    )


def infer_shape(op: Op, values: list[Value]) -> Shape:
    """The output shape of an Op, after checking operands and attributes against its signature."""
    signature = SIGNATURES.get(op.kind)
    if signature is None:
        raise _fail(f"unknown Op '{op.kind}'; known: {', '.join(SIGNATURES)}")
    needed = sum(not name.endswith("?") for name in signature.operands)
    if not needed <= len(values) <= len(signature.operands):
        raise _fail(f"{op.kind} takes {', '.join(signature.operands)}; got {len(values)} operands")
    missing = [a for a in signature.attrs if a not in op.attrs]
    unknown = [a for a in op.attrs if a not in signature.attrs]
    if missing or unknown:
        raise _fail(f"{op.kind}: attributes missing {missing}, unknown {unknown}")
    return signature.shape(values, op.attrs)
