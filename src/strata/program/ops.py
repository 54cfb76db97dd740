"""The Ops: for each kind its operands, attributes, shape rule and arithmetic.

The semantics of every kind are defined by one obvious function in ``strata.backends.reference``.
Batch inputs (``tokens``, ``positions``, ``out_rows``) and KV state are not operands: they belong to
the step, and the Ops that need them say so in their signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from strata.program.program import ProgramError, Shape, Value

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


@dataclass(frozen=True)
class Signature:
    """What a kind of Op accepts and costs.

    ``operands`` names the inputs, optional ones end in ``?``. ``attrs`` are the required attribute
    names. ``shape`` gives the output's shape or raises ProgramError. ``flops`` counts floating
    point operations for (operands, attrs, rows, context positions attended per row). ``reads`` says
    how weights among the operands are read, where that is not ``all``.
    """

    operands: tuple[str, ...]
    attrs: tuple[str, ...]
    shape: ShapeRule
    flops: FlopsRule
    from_step: tuple[str, ...] = ()
    reads: Mapping[str, Reads] = field(default_factory=dict)


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
    q, k, v = values
    heads, kv_heads, dim = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    if (
        heads % kv_heads
        or q.width != heads * dim
        or k.width != kv_heads * dim
        or k.shape != v.shape
    ):
        raise _fail(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} are not "
            f"{heads} and {kv_heads} heads of {dim}"
        )
    return q.shape


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
    return 4 * rows * keys * values[0].width


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
    # scores = softcap(q.k * scale), keys older than `window` positions are not seen (0: all are)
    "attention": Signature(
        ("q", "k", "v"),
        ("layer", "heads", "kv_heads", "head_dim", "scale", "window", "softcap"),
        _attention,
        _attention_flops,
        ("positions", "kv"),
    ),
    # out = act(gate) * up
    "glu": Signature(("gate", "up"), ("function",), _activation, _per_element(6)),
    "activation": Signature(("x",), ("function",), _activation, _per_element(5)),
    "add": Signature(("a", "b"), (), _same, _per_element(1)),
    # out = x * factor
    "scale": Signature(("x",), ("factor",), _unary, _per_element(1)),
    # out = cap * tanh(x / cap)
    "softcap": Signature(("x",), ("cap",), _unary, _per_element(6)),
    # out = x[out_rows]: only rows whose logits are wanted go on
    "select": Signature(("x",), (), _select, lambda v, a, r, c: 0, ("out_rows",)),
}


def reads(op: Op) -> dict[str, Reads]:
    """How an Op reads each of its operands, if that is a weight."""
    signature = SIGNATURES[op.kind]
    names = (name.rstrip("?") for name in signature.operands)
    # Optional operands come last, and may be missing.
    pairs = zip(names, op.inputs, strict=False)
    return {value: signature.reads.get(name, "all") for name, value in pairs}


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
