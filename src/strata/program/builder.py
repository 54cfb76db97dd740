"""Builds one Segment: each method appends an Op and returns the name of its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from strata.program.model import Segment, Weight
from strata.program.ops import Op, infer_shape
from strata.program.ops.experts import EXPERT_DEFAULTS, EXTRAS
from strata.program.program import Program, ProgramError, Shape, Value

Source = Callable[[str], Weight]
"""Gives the Weight behind a canonical name: where it lies in the file and what shape it has."""


class Builder:
    """Builds the Program of one Segment.

    ``weights`` is asked for every canonical weight name that is used; ``inputs`` are the
    activations that come from the Segment before.
    """

    def __init__(self, name: str, weights: Source, inputs: dict[str, Shape] | None = None) -> None:
        self.name = name
        self._source = weights
        self._weights: dict[str, Weight] = {}
        self._unit: str | None = None
        self._unit_of: dict[str, str] = {}
        self._ops: list[Op] = []
        self._values = {n: Value(n, "input", s) for n, s in (inputs or {}).items()}
        self._inputs = tuple(self._values)

    def build(self, **outputs: str) -> Segment:
        """The Segment; ``outputs`` names what goes out, ``out_name=value``."""
        for name, value in outputs.items():
            if value not in self._values or self._values[value].role != "activation":
                raise ProgramError(f"segment '{self.name}': output '{name}' is not computed here")
        program = Program(
            tuple(self._ops), dict(self._values), self._inputs, tuple(outputs.values())
        )
        weights = tuple(self._weights.values())
        return Segment(self.name, program, weights, tuple(outputs), self._unit_of)

    @contextmanager
    def unit(self, name: str) -> Iterator[None]:
        """Weights that are first used inside form a WeightUnit of this name: they stay or stream
        apart from the Segment's others. Products that a backend may run as one belong together."""
        self._unit = name
        try:
            yield
        finally:
            self._unit = None

    def _emit(self, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        output = f"{kind}.{len(self._ops)}"
        values = []
        for name in inputs:
            if name not in self._values:
                raise ProgramError(f"segment '{self.name}': '{name}' is used before it is made")
            values.append(self._values[name])
        op = Op(kind, tuple(inputs), output, attrs)
        try:
            shape = infer_shape(op, values)
        except ProgramError as error:
            raise ProgramError(f"segment '{self.name}', op {len(self._ops)}: {error}") from None
        self._ops.append(op)
        self._values[output] = Value(output, "activation", shape)
        return output

    def _weight(self, name: str) -> str:
        if name not in self._weights:
            weight = self._source(name)
            self._weights[name] = weight
            if self._unit is not None:
                self._unit_of[name] = self._unit
            self._values[name] = Value(name, "weight", weight.shape)
        return name

    def _optional(self, name: str | None) -> list[str]:
        return [] if name is None else [self._weight(name)]

    def embed(self, table: str, scale: float = 1.0) -> str:
        """Rows of the embedding table for the step's tokens."""
        return self._emit("embed", [self._weight(table)], scale=scale)

    def add_positions(self, x: str, table: str, offset: int = 0) -> str:
        """Learned absolute positions added to x."""
        return self._emit("add_positions", [x, self._weight(table)], offset=offset)

    def rms_norm(self, x: str, weight: str | None, eps: float, group: int = 0) -> str:
        """RMSNorm over groups as wide as the weight (a head's width: per-head q/k norm), or of
        ``group`` columns where there is none."""
        return self._emit("rms_norm", [x, *self._optional(weight)], eps=eps, group=group)

    def layer_norm(
        self, x: str, weight: str | None, bias: str | None, eps: float, group: int = 0
    ) -> str:
        """LayerNorm, over groups as in ``rms_norm``."""
        if weight is None and bias is not None:
            raise ProgramError(f"segment '{self.name}': layer_norm has a bias without a weight")
        operands = [x, *self._optional(weight), *self._optional(bias)]
        return self._emit("layer_norm", operands, eps=eps, group=group)

    def matmul(self, x: str, weight: str, bias: str | None = None) -> str:
        """x @ weight.T + bias; a weight of three axes has a matrix for each head of x."""
        return self._emit("matmul", [x, self._weight(weight), *self._optional(bias)])

    def rope(
        self,
        x: str,
        *,
        head_dim: int,
        inv_freq: Sequence[float],
        style: str,
        mscale: float = 1.0,
        factors: str | None = None,
        limit: int = 0,
    ) -> str:
        """Rotary positions on every head of x; with a ``limit`` those beyond count as that one."""
        return self._emit(
            "rope",
            [x, *self._optional(factors)],
            head_dim=head_dim,
            inv_freq=tuple(inv_freq),
            style=style,
            mscale=mscale,
            limit=limit,
        )

    def attention(
        self,
        q: str,
        k: str | None = None,
        v: str | None = None,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        k_dim: int,
        v_dim: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        alibi: float = 0.0,
        causal: bool = True,
        sinks: str | None = None,
        chunked: bool = False,
        beginning: int = 0,
        q_beginning: str | None = None,
        read: int = 0,
        chosen: str | None = None,
    ) -> str:
        """Append k and v to the layer's KV, then causal attention.

        Without ``v`` values are the first ``v_dim`` elements of keys; without ``k`` and ``v`` what
        layer ``layer`` keeps is read as it is. ``sinks`` is a weight, a score for each head.
        ``chunked``: a row sees those of its chunk of ``window`` positions. ``beginning``: the first
        positions that are seen from beyond the window, by the query ``q_beginning``.
        ``read``: a row sees so many positions, of blocks chosen by bounds of their keys.
        ``chosen``: it sees those positions, which ``top_keys`` gave.
        """
        if k is None and v is not None:
            raise ProgramError(f"segment '{self.name}': attention has values without keys")
        return self._emit(
            "attention",
            [
                q,
                *(x for x in (k, v) if x is not None),
                *self._optional(sinks),
                *(x for x in (q_beginning, chosen) if x is not None),
            ],
            layer=layer,
            heads=heads,
            kv_heads=kv_heads,
            k_dim=k_dim,
            v_dim=v_dim,
            scale=scale,
            window=window,
            softcap=softcap,
            alibi=alibi,
            causal=causal,
            sinks=sinks is not None,
            chunked=chunked,
            beginning=beginning,
            read=read,
            chosen=chosen is not None,
        )

    def top_keys(
        self,
        q: str,
        k: str,
        w: str | None = None,
        *,
        layer: int,
        most: int,
        block: int = 1,
        local: int = 0,
    ) -> str:
        """Append k to the keys of ``layer``; positions [T, most] of those that weigh most, by heads
        of q with weights w, or [T, heads * most], each head's own; in blocks of so many positions,
        of which the last ``local`` are always among them."""
        operands = [q, k] if w is None else [q, k, w]
        attrs = {"layer": layer, "most": most, "block": block, "local": local}
        return self._emit("top_keys", operands, **attrs)

    def columns(self, x: str, *, head_dim: int, start: int, width: int) -> str:
        """Columns ``start .. start + width`` of each head; x itself where that is all."""
        if start == 0 and width == head_dim:
            return x
        return self._emit("columns", [x], head_dim=head_dim, start=start, width=width)

    def join(self, a: str, b: str, *, heads: int, shared: bool = False) -> str:
        """Each of ``heads`` heads of a with that of b behind it, or with all of a ``shared`` b."""
        return self._emit("join", [a, b], heads=heads, shared=shared)

    def short_conv(
        self, x: str, weight: str, bias: str | None = None, *, layer: int, dilation: int = 1
    ) -> str:
        """Depthwise causal convolution along the sequence; ``weight`` is [width, taps], of rows
        that are ``dilation`` apart."""
        operands = [x, self._weight(weight), *self._optional(bias)]
        return self._emit("short_conv", operands, layer=layer, dilation=dilation)

    def ngrams(
        self,
        table: str,
        *,
        layer: int,
        multipliers: Sequence[int],
        starts: Sequence[int],
        sizes: Sequence[int],
        end: int,
    ) -> str:
        """Rows of a table by hashes of the step's tokens and those before them, side by side."""
        how = {"multipliers": list(multipliers), "starts": list(starts), "sizes": list(sizes)}
        return self._emit("ngrams", [self._weight(table)], layer=layer, **how, end=end)

    def previous(self, x: str, *, layer: int) -> str:
        """The row before, of the same sequence."""
        return self._emit("previous", [x], layer=layer)

    def ssm_scan(
        self,
        *xs: str,
        a: str,
        d: str,
        layer: int,
        groups: int,
        states: int,
    ) -> str:
        """Selective state spaces of Mamba-1 and -2; ``xs`` are x, dt, b and c."""
        operands = [*xs, self._weight(a), self._weight(d)]
        return self._emit("ssm_scan", operands, layer=layer, groups=groups, states=states)

    def gated_delta(
        self,
        *xs: str,
        layer: int,
        heads: int,
        key_heads: int,
        tiled: bool = False,
    ) -> str:
        """The gated delta rule; ``xs`` are q, k, v, decay and beta."""
        attrs = {"layer": layer, "heads": heads, "key_heads": key_heads, "tiled": tiled}
        return self._emit("gated_delta", xs, **attrs)

    def linear_attention(
        self, *xs: str, layer: int, heads: int, decays: Sequence[float] = ()
    ) -> str:
        """Attention without softmax; ``xs`` are q, k, v and, where no ``decays`` of the heads are
        given, the decay."""
        attrs = {"layer": layer, "heads": heads, "decays": tuple(decays)}
        return self._emit("linear_attention", xs, **attrs)

    def wkv6(self, *xs: str, u: str, layer: int, heads: int) -> str:
        """RWKV-6's attention; ``xs`` are r, k, v and w."""
        return self._emit("wkv6", [*xs, self._weight(u)], layer=layer, heads=heads)

    def wkv7(self, *xs: str, layer: int, heads: int) -> str:
        """RWKV-7's attention; ``xs`` are r, w, k, v, a and b."""
        return self._emit("wkv7", xs, layer=layer, heads=heads)

    def grouped_rms_norm(self, x: str, weight: str, groups: int, eps: float) -> str:
        """RMSNorm of each of ``groups``, which have weights of their own."""
        return self._emit("grouped_rms_norm", [x, self._weight(weight)], groups=groups, eps=eps)

    def l2_norm(self, x: str, group: int, eps: float, scale: float = 1.0) -> str:
        """x / sqrt(sum(x^2) + eps) * scale over groups."""
        return self._emit("l2_norm", [x], group=group, eps=eps, scale=scale)

    def mix(self, x: str, weights: str, streams: int) -> str:
        """Sums of the streams of x: ``weights`` has ``streams`` numbers for each one that results,
        one for each of x."""
        return self._emit("mix", [x, weights], streams=streams)

    def sinkhorn(self, x: str, streams: int, iterations: int, eps: float) -> str:
        """Weights of ``mix`` from a matrix of each row, made nearly doubly stochastic."""
        return self._emit("sinkhorn", [x], streams=streams, iterations=iterations, eps=eps)

    def match_rms(self, x: str, like: str, least: float = 0.0) -> str:
        """Each stream of x, as wide as ``like``, made as large as that."""
        return self._emit("match_rms", [x, like], least=least)

    def cutoff(self, x: str, deviations: float, spare: int = 0) -> str:
        """What of each element is above the mean of its row by more than so many standard
        deviations."""
        return self._emit("cutoff", [x], deviations=deviations, spare=spare)

    def group_sum(self, x: str, group: int) -> str:
        """The sum of each group of columns."""
        return self._emit("group_sum", [x], group=group)

    def softmax(self, x: str, group: int) -> str:
        """e^x over the sum of e^x, over groups."""
        return self._emit("softmax", [x], group=group)

    def decay(self, x: str, a: str) -> str:
        """exp(a * softplus(x))."""
        return self._emit("decay", [x, self._weight(a)])

    def experts(self, x: str, logits: str, up: str, down: str, **options: Any) -> str:
        """The chosen experts' weighted sum: weights by the names of the Op's operands (``gate``,
        biases, scales, ``selection``), the rest are its attributes; see ``ops/experts.py``."""
        extras = {n: options.pop(n) for n in EXTRAS if options.get(n) is not None}
        attrs = {**EXPERT_DEFAULTS, **{n: v for n, v in options.items() if n not in EXTRAS}}
        weights = [self._weight(name) for name in (up, down, *extras.values())]
        return self._emit("experts", [x, logits, *weights], **attrs, extras=tuple(extras))

    def glu(self, gate: str, up: str, function: str) -> str:
        """act(gate) * up."""
        return self._emit("glu", [gate, up], function=function)

    def activation(self, x: str, function: str) -> str:
        """act(x)."""
        return self._emit("activation", [x], function=function)

    def add(self, a: str, b: str) -> str:
        """a + b."""
        return self._emit("add", [a, b])

    def mul(self, a: str, b: str) -> str:
        """a * b, where each column of b stands for as many neighbouring columns of a."""
        return self._emit("mul", [a, b], weight=False, inverse=False)

    def scale_by(self, x: str, weight: str, inverse: bool = False) -> str:
        """x times a weight, or divided by it: one number, one a group of columns, or one a
        column."""
        return self._emit("mul", [x, self._weight(weight)], weight=True, inverse=inverse)

    def shift(self, x: str, bias: str) -> str:
        """x + a weight as wide."""
        return self._emit("shift", [x, self._weight(bias)])

    def clamp(self, x: str, low: float, high: float) -> str:
        """x kept within low .. high."""
        return self._emit("clamp", [x], low=low, high=high)

    def xielu(self, x: str, negative: float, positive: float, beta: float, eps: float) -> str:
        """The activation of Apertus."""
        attrs = {"negative": negative, "positive": positive, "beta": beta, "eps": eps}
        return self._emit("xielu", [x], **attrs)

    def position_scale(self, x: str, floor: float, scale: float, offset: float = 0.0) -> str:
        """x times a temperature that grows with its position."""
        return self._emit("position_scale", [x], floor=floor, scale=scale, offset=offset)

    def scale(self, x: str, factor: float) -> str:
        """x * factor; nothing is emitted for 1."""
        return x if factor == 1.0 else self._emit("scale", [x], factor=factor)

    def softcap(self, x: str, cap: float) -> str:
        """cap * tanh(x / cap); nothing is emitted for 0."""
        return x if cap == 0.0 else self._emit("softcap", [x], cap=cap)

    def select(self, x: str) -> str:
        """Only the rows whose logits are wanted."""
        return self._emit("select", [x])
