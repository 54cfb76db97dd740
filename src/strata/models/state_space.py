"""Mixers of Mamba-1 and Mamba-2 (arXiv:2312.00752, 2405.21060), of which several families are made.

GGUF files keep the decay as -exp(A_log) and, as Hugging Face files do, one fused projection, of
which each part is read as a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from strata.models import decoder
from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, LayerState, PagedKV, Recurrent
from strata.program.ops.scans import MOST_KEYS
from strata.records import dataclass

_MOST_TAPS = 64


class Kept:
    """What a model keeps of a sequence, numbered as its layers ask for it."""

    def __init__(self) -> None:
        self.state: list[LayerState] = []

    def add(self, state: LayerState) -> int:
        """The number of one more."""
        self.state.append(state)
        return len(self.state) - 1

    def kv(self, c: Config, i: int) -> int:
        """Keys and values of layer ``i``."""
        return self.add(PagedKV(c.kv_heads, c.head_dim, c.head_dim, c.windows[i]))

    def rows(self, taps: int, width: int) -> int:
        """What came before, for a convolution."""
        return self.add(Recurrent(((taps - 1, width),)))

    def matrices(self, heads: int, keys: int, values: int) -> int:
        """A matrix a head."""
        return self.add(Recurrent(((heads, keys, values),)))


@dataclass(frozen=True)
class Sizes:
    """Of a mixer. ``heads`` is the rank of the steps in Mamba-1, where every channel is a head."""

    inner: int
    states: int
    heads: int
    groups: int
    taps: int

    @property
    def convolved(self) -> int:
        """Channels that Mamba-2 convolves: x, B and C."""
        return self.inner + 2 * self.groups * self.states


def read_sizes(
    c: Config, *, version: int, inner: int | None = None, groups: int | None = None
) -> Sizes:
    """The sizes of a file's mixers of Mamba-``version``; ``inner`` and ``groups`` where the family
    knows."""
    keys = c.keys
    states = keys.integer("ssm_states", high=MOST_KEYS)
    taps = keys.integer("ssm_taps", low=2, high=_MOST_TAPS)
    expanded = keys.integer("ssm_expand", 2, high=64) * c.width
    if version == 1:
        inner = keys.integer("ssm_inner", inner or expanded, high=MAX_WIDTH)
        # 'auto' is a sixteenth of the width.
        auto = keys.find("ssm_rank")[1] == "auto"
        rank = -(-c.width // 16) if auto else keys.integer("ssm_rank", high=MAX_WIDTH)
        return Sizes(inner, states, rank, 1, taps)
    heads = keys.integer("ssm_heads", high=MAX_WIDTH)
    if keys.kind != "gguf" and isinstance(keys.find("ssm_head_dim")[1], int):
        expanded = heads * keys.integer("ssm_head_dim", high=MAX_WIDTH)
    inner = keys.integer("ssm_inner", expanded, high=MAX_WIDTH)
    groups = groups or keys.integer("ssm_groups", high=MAX_WIDTH)
    if inner % heads or heads % groups:
        key = keys.find("ssm_heads")[0]
        raise ConfigError(f"'{key}' is {heads}: a divisor of {inner}, and {groups} groups of heads")
    return Sizes(inner, states, heads, groups, taps)


def tensors1(c: Config, s: Sizes, mixer: str, *, norms: bool = False) -> dict[str, Tensor]:
    """The tensors of a Mamba-1 mixer; ``mixer`` is what is before their names in Hugging Face
    files. ``norms``: of the step, B and C, as Jamba has them."""
    name, stored = "blk.{i}.ssm_", f"{{p}}layers.{{i}}.{mixer}."
    tensors = {
        **_parts(c, "in", f"{stored}in_proj", {"x": s.inner, "z": s.inner}, c.width),
        **_parts(c, "x", f"{stored}x_proj", {"dt": s.heads, "b": s.states, "c": s.states}, s.inner),
        f"{name}dt.weight": Tensor(f"{stored}dt_proj.weight", (s.inner, s.heads)),
        f"{name}dt.bias": Tensor(f"{stored}dt_proj.bias", (s.inner,)),
        f"{name}a": Tensor(f"{stored}A_log", (s.inner, s.states), transform="negative_exp"),
        f"{name}d": Tensor(f"{stored}D", (s.inner,)),
        **_around(c, s.inner, s.inner, s.taps, stored),
    }
    if norms:
        for part, width in (("dt", s.heads), ("b", s.states), ("c", s.states)):
            tensors[f"{name}{part}_norm.weight"] = Tensor(
                f"{stored}{part}_layernorm.weight", (width,)
            )
    return tensors


def tensors2(c: Config, s: Sizes, mixer: str, *, norm: bool = True) -> dict[str, Tensor]:
    """The tensors of a Mamba-2 mixer; ``norm``: of what comes out, always there."""
    name, stored = "blk.{i}.ssm_", f"{{p}}layers.{{i}}.{mixer}."
    parts = {"z": s.inner, "x": s.convolved, "dt": s.heads}
    apart = c.keys.kind == "gguf" and s.groups > 1
    return {
        **_parts(c, "in", f"{stored}in_proj", parts, c.width),
        f"{name}dt.bias": Tensor(f"{stored}dt_bias", (s.heads,)),
        f"{name}a": Tensor(f"{stored}A_log", (s.heads,), transform="negative_exp", unit_axes=True),
        f"{name}d": Tensor(f"{stored}D", (s.heads,), unit_axes=True),
        f"{name}norm.weight": Tensor(
            f"{stored}norm.weight",
            (s.groups, s.inner // s.groups) if apart else (s.inner,),
            optional=not norm,
            unit_axes=True,
        ),
        **_around(c, s.convolved, s.inner, s.taps, stored),
    }


def mixer1(
    b: Builder,
    c: Config,
    s: Sizes,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    step_eps: float | None = None,
) -> str:
    """in, convolution, scan, gate, out; with norms of the step, B and C where the file has them, or
    without weights where ``step_eps`` is given."""
    name = f"blk.{i}.ssm_"
    with b.unit("ssm"):
        x, z = (decoder.product(b, catalog, x, f"{name}in_{part}") for part in "xz")
        x = _convolve(b, s, catalog, kept, x, i, s.inner)
        steps = [b.matmul(x, f"{name}x_{part}.weight") for part in ("dt", "b", "c")]
        if step_eps is not None:
            steps = [
                b.rms_norm(y, None, step_eps, width)
                for y, width in zip(steps, (s.heads, s.states, s.states), strict=True)
            ]
        elif catalog.has(f"{name}dt_norm.weight"):
            eps = decoder.rms_eps(c)
            parts = ("dt", "b", "c")
            steps = [
                b.rms_norm(y, f"{name}{part}_norm.weight", eps)
                for y, part in zip(steps, parts, strict=True)
            ]
        dt = b.matmul(steps[0], f"{name}dt.weight", f"{name}dt.bias")
        layer = kept.matrices(s.inner, s.states, 1)
        operands = (x, dt, *steps[1:])
        y = b.ssm_scan(
            *operands, a=f"{name}a", d=f"{name}d", layer=layer, groups=1, states=s.states
        )
        return decoder.product(b, catalog, b.glu(z, y, "silu"), f"{name}out")


def mixer2(
    b: Builder,
    s: Sizes,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    eps: float,
    scales: Sequence[float] = (),
) -> str:
    """in, convolution of x, B and C, scan, gate, norm where there is one, out.

    ``scales``, if any, are of the gate, of x, B, C and of the steps, before all of that.
    """
    name = f"blk.{i}.ssm_"
    shared = s.groups * s.states
    spans = ((0, s.inner), (s.inner, shared), (s.inner + shared, shared))

    def parts(y: str) -> list[str]:
        return [
            b.columns(y, head_dim=s.convolved, start=start, width=width) for start, width in spans
        ]

    with b.unit("ssm"):
        z, mixed = (decoder.product(b, catalog, x, f"{name}in_{part}") for part in "zx")
        if scales or catalog.has(f"{name}in_dt.scale"):
            dt = decoder.product(b, catalog, x, f"{name}in_dt")
            dt = b.shift(b.scale(dt, scales[4] if scales else 1.0), f"{name}dt.bias")
        else:
            dt = b.matmul(x, f"{name}in_dt.weight", f"{name}dt.bias")
        if scales:
            z = b.scale(z, scales[0])
            made = [b.scale(y, by) for y, by in zip(parts(mixed), scales[1:4], strict=True)]
            mixed = b.join(b.join(made[0], made[1], heads=1), made[2], heads=1)
        mixed = _convolve(b, s, catalog, kept, mixed, i, s.convolved)
        x, bs, cs = parts(mixed)
        y = b.ssm_scan(
            *(x, dt, bs, cs),
            a=f"{name}a",
            d=f"{name}d",
            layer=kept.matrices(s.heads, s.states, s.inner // s.heads),
            groups=s.groups,
            states=s.states,
        )
        y = b.glu(z, y, "silu")
        if catalog.has(f"{name}norm.weight"):
            y = b.grouped_rms_norm(y, f"{name}norm.weight", s.groups, eps)
        return decoder.product(b, catalog, y, f"{name}out")


def _parts(
    c: Config, fused: str, stored: str, widths: dict[str, int], columns: int
) -> dict[str, Tensor]:
    """Matrices that files keep as one, row after row."""
    out, start, total = {}, 0, sum(widths.values())
    for part, rows in widths.items():
        whole = Part(f"blk.{{i}}.ssm_{fused}.weight", f"{stored}.weight", start, total)
        out[f"blk.{{i}}.ssm_{fused}_{part}.weight"] = Tensor(
            None, (rows, columns), part=whole, apart=False
        )
        for name, tensor in decoder.scale_tensors(c, f"ssm_{fused}_{part}", f"ssm_{fused}").items():
            out[name] = replace(tensor, apart=False)
        start += rows
    return out


def _around(c: Config, convolved: int, inner: int, taps: int, stored: str) -> dict[str, Tensor]:
    return {
        "blk.{i}.ssm_conv1d.weight": Tensor(
            f"{stored}conv1d.weight", (convolved, taps), unit_axes=True
        ),
        "blk.{i}.ssm_conv1d.bias": Tensor(f"{stored}conv1d.bias", (convolved,), optional=True),
        "blk.{i}.ssm_out.weight": Tensor(f"{stored}out_proj.weight", (c.width, inner)),
        **decoder.scale_tensors(c, "ssm_out"),
    }


def _convolve(
    b: Builder,
    s: Sizes,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    width: int,
) -> str:
    name = f"blk.{i}.ssm_conv1d"
    bias = decoder.present(catalog, f"{name}.bias")
    layer = kept.rows(s.taps, width)
    return b.activation(b.short_conv(x, f"{name}.weight", bias, layer=layer), "silu")
