"""Heads that were trained to guess for one model, as Models of their own: EAGLE's layer over what
several of its layers gave, and Medusa's blocks, each of which guesses one token further on.

They take from the model what their files leave out: its embedding table, its last norm, its head.

Source: EAGLE-1 and -2, arXiv 2401.15077 and 2406.16858; EAGLE-3, arXiv 2503.01840; Medusa, arXiv
2401.10774; blockwise parallel decoding, arXiv 1811.03115. Names of tensors are those of the
published files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strata.backends.weights import LENT
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import read_config, read_trained_context
from strata.models.keys import Keys
from strata.models.rope import read_rope
from strata.program import Builder, Model, PagedKV, Segment, Weight
from strata.program.program import Shape
from strata.records import dataclass

HeadsKind = Literal["eagle3", "eagle", "medusa"]

_MEDUSA = re.compile(r"((?:medusa_head\.)?)0\.0\.linear\.weight|(blocks\.)0\.layers\.0\.weight")
_MOST_HEADS = 32
_UNUSED = re.compile(r"(.*rotary_emb\.inv_freq|d2t|t2d)")


@dataclass(frozen=True)
class GuessingHeads:
    """Heads as a ``model``, which go on from what the Segments of the numbers ``sees`` of the other
    model give, side by side. They choose from fewer tokens than that has where the file says which
    (``token_ids``)."""

    model: Model
    sees: tuple[int, ...]


def heads_kind(file: ModelFile) -> HeadsKind | None:
    """Which heads a file holds; None for a model."""
    if file.kind == "gguf":
        return None
    if any(_MEDUSA.fullmatch(name) for name in file.tensors):
        return "medusa"
    entry = file.tensors.get("fc.weight")
    if entry is None or len(entry.shape) != 2:
        return None
    return "eagle3" if entry.shape[1] == 3 * entry.shape[0] else "eagle"


def guessing_heads(file: ModelFile, kind: HeadsKind, target: Model, of: str) -> GuessingHeads:
    """The heads in ``file``, for texts of as many positions as ``target`` has, called ``of``.

    UsageError where shapes or the vocabulary are not those of the model, or a tensor is missing or
    one too many; a ModelError for a config.json that says nothing.
    """
    tensors = _Tensors(file, target, of)
    made = _medusa(tensors) if kind == "medusa" else _eagle(tensors, kind)
    tensors.check_all_used()
    return made


def token_ids(file: ModelFile, vocabulary: int, of_model: int) -> NDArray[np.int64] | None:
    """The model's tokens by the heads' [vocabulary]; None where they are the same. UsageError for
    a table that is none."""
    info = file.tensors.get("d2t")
    if info is None:
        return None
    name = file.path.name
    if info.type.name != "I64" or tuple(info.shape) != (vocabulary,):
        raise UsageError(f"{name}: 'd2t' is no list of {vocabulary} whole numbers (I64)")
    ids: NDArray[np.int64] = np.arange(vocabulary) + file.read("d2t").view(np.int64)
    if ids.min() < 0 or ids.max() >= of_model or len(np.unique(ids)) < vocabulary:
        raise UsageError(f"{name}: 'd2t' does not name {vocabulary} of {of_model} tokens")
    return ids


class _Tensors:
    """The tensors of such a file, each of the one shape that the model asks for; a Source of
    Weights by the names that its methods give."""

    def __init__(self, file: ModelFile, target: Model, of: str) -> None:
        self.file, self.target, self.of = file, target, of
        self._weights: dict[str, Weight] = {}

    def __call__(self, name: str) -> Weight:
        return self._weights[name]

    def own(self, name: str, *shape: int) -> str:
        """The tensor of this name and shape."""
        info = self.file.tensors.get(name)
        if info is None:
            raise self.refused(f"it has no tensor '{name}'")
        if tuple(info.shape) != shape:
            raise self.refused(f"'{name}' has shape {list(info.shape)} and not {list(shape)}")
        if info.type.integer:
            raise self.refused(f"'{name}' holds whole numbers ({info.type.name})")
        self._weights[name] = Weight(name, shape, name)
        return name

    def optional(self, name: str, *shape: int) -> str | None:
        """The same, None where there is none."""
        return self.own(name, *shape) if name in self.file.tensors else None

    def lent(self, segment: Segment, kind: str) -> str:
        """The weight of the first Op of a kind in a Segment of the model."""
        for op in segment.program.ops:
            if op.kind == kind and len(op.inputs) > (kind != "embed"):
                weight = {w.name: w for w in segment.weights}[op.inputs[kind != "embed"]]
                name = LENT + weight.name
                self._weights[name] = replace(weight, name=name, source=LENT + weight.source)
                return name
        raise self.refused(f"it takes the model's {kind}, and there is none")

    def table(self) -> str:
        """The embedding table of the model."""
        return self.lent(self.target.segments[0], "embed")

    def head(self) -> str:
        """The matrix of the model's head."""
        return self.lent(self.target.segments[-1], "matmul")

    def last_norm(self, b: Builder) -> str:
        """What the model's head multiplies, of its last layer's ``x``."""
        norm = next((o for o in self.target.segments[-1].program.ops if o.kind != "select"), None)
        if norm is None or norm.kind != "rms_norm" or norm.attrs["group"]:
            raise self.refused("it goes on from a last RMSNorm, which this model has not")
        weight = self.lent(self.target.segments[-1], "rms_norm")
        return b.rms_norm("x", weight, norm.attrs["eps"])

    def refused(self, why: str) -> UsageError:
        """What to say of a file that does not fit."""
        return UsageError(
            f"{self.file.path.name} cannot guess for {self.of}: {why}; give heads that were "
            f"trained for this model"
        )

    def check_all_used(self) -> None:
        """UsageError for a tensor that nothing is done with."""
        for name in self.file.tensors:
            if name not in self._weights and not _UNUSED.fullmatch(name):
                raise self.refused(f"its tensor '{name}' is not known")


def _seen(t: _Tensors, kind: HeadsKind) -> tuple[int, ...]:
    """The Segments whose rows the heads see: a layer's input is what the Segment of its number
    gives, since the first one embeds."""
    target = t.target
    layers = len(target.segments) - 2
    names = [(s.name, s.outputs) for s in target.segments[1:-1]]
    plain = names == [(f"layer.{i}", ("x",)) for i in range(layers)]
    if not plain or target.segments[-1].program.values["x"].width != target.width:
        raise t.refused("its layers pass on more than one row of the model's width")
    if kind != "eagle3":
        return (layers,)
    stated = Keys(t.file, kind).raw("eagle_config")
    stated = stated.get("eagle_aux_hidden_state_layer_ids") if isinstance(stated, dict) else None
    if stated is None:
        # Low, middle and high, as EAGLE's own code and vLLM have it.
        stated = [2, layers // 2, layers - 3]
    if (
        not isinstance(stated, list)
        or len(stated) != 3
        or not all(type(n) is int and 0 <= n <= layers for n in stated)
        or sorted(set(stated)) != stated
    ):
        raise t.refused(f"it sees the inputs of layers {stated} of {layers}")
    return tuple(stated)


def _eagle(t: _Tensors, kind: HeadsKind) -> GuessingHeads:
    target, width = t.target, t.target.width
    # The third version is known by its shapes, whatever it calls itself.
    trained = read_trained_context(Keys(t.file, kind))
    c = read_config(t.file, kind, min(trained, target.context_length))
    if c.width != width:
        raise t.refused(f"it is {c.width} wide and not {width}")
    if c.vocab != target.vocab_size:
        raise t.refused(f"it has {c.vocab} tokens and not {target.vocab_size}")
    if c.layers != 1:
        raise t.refused(f"it has {c.layers} layers and not one")
    decoder.check_activation(c, "silu")
    third = kind == "eagle3"
    seen = _seen(t, kind)
    eps = decoder.rms_eps(c)
    wide: dict[str, Shape] = {"x": ("T", len(seen) * width)}
    rows: dict[str, Shape] = {"x": ("T", width)}
    enter = Builder("enter", t, wide)
    if third:
        entered = enter.matmul("x", t.own("fc.weight", width, 3 * width))
    else:
        entered = t.last_norm(enter)
    b = Builder("layer.0", t, rows)
    table = t.optional("embed_tokens.weight", c.vocab, width) or t.table()
    at = "midlayer." if "midlayer.hidden_norm.weight" in t.file.tensors else "layers.0."
    token = b.embed(table)
    if third:
        token = b.rms_norm(token, t.own(f"{at}input_layernorm.weight", width), eps)
        given = b.rms_norm("x", t.own(f"{at}hidden_norm.weight", width), eps)
        x, into = "x", b.join(token, given, heads=1)
    else:
        both = b.join(token, "x", heads=1)
        bias = t.optional("fc.bias", width)
        x = into = b.matmul(both, t.own("fc.weight", width, 2 * width), bias)
    wide_in = 2 * width if third else width
    rope = read_rope(c, "neox")
    sizes = {"q": c.q_width, "k": c.kv_width, "v": c.v_width}
    with b.unit("attention"):
        q, k, v = (
            b.matmul(
                into,
                t.own(f"{at}self_attn.{letter}_proj.weight", size, wide_in),
                t.optional(f"{at}self_attn.{letter}_proj.bias", size),
            )
            for letter, size in sizes.items()
        )
    q, k = (decoder.rotate(b, c, y, rope) for y in (q, k))
    mixed = b.attention(
        *(q, k, v),
        layer=0,
        heads=c.heads,
        kv_heads=c.kv_heads,
        k_dim=c.head_dim,
        v_dim=c.v_dim,
        scale=1 / sqrt(c.head_dim),
    )
    with b.unit("attention"):
        x = b.add(x, b.matmul(mixed, t.own(f"{at}self_attn.o_proj.weight", width, c.q_width)))
    h = b.rms_norm(x, t.own(f"{at}post_attention_layernorm.weight", width), eps)
    with b.unit("ffn"):
        gate = b.matmul(h, t.own(f"{at}mlp.gate_proj.weight", c.ffn, width))
        up = b.matmul(h, t.own(f"{at}mlp.up_proj.weight", c.ffn, width))
        down = t.own(f"{at}mlp.down_proj.weight", width, c.ffn)
        x = b.add(x, b.matmul(b.glu(gate, up, "silu"), down))
    last = Builder("head", t, rows)
    selected, vocabulary = last.select("x"), c.vocab
    if third:
        vocabulary = _chosen_from(t, c.vocab)
        selected = last.rms_norm(selected, t.own("norm.weight", width), eps)
        head = t.own("lm_head.weight", vocabulary, width)
    else:
        head = t.optional("lm_head.weight", vocabulary, width) or t.head()
    segments = (
        enter.build(x=entered),
        b.build(x=x),
        last.build(logits=last.matmul(selected, head)),
    )
    state = (PagedKV(c.kv_heads, c.head_dim, c.v_dim, 0),)
    model = Model(kind, segments, state, vocabulary, width, c.context)
    return GuessingHeads(model, seen)


def _chosen_from(t: _Tensors, vocabulary: int) -> int:
    """Tokens of EAGLE-3's own head: some of the model's, or all of them."""
    chosen, all_of_them = t.file.tensors.get("d2t"), t.file.tensors.get("t2d")
    if all_of_them is not None and tuple(all_of_them.shape) != (vocabulary,):
        raise t.refused(f"'t2d' is of {list(all_of_them.shape)} tokens and not of {vocabulary}")
    if chosen is None:
        return vocabulary
    if len(chosen.shape) != 1 or not 0 < chosen.shape[0] <= vocabulary:
        raise t.refused(f"'d2t' has shape {list(chosen.shape)}")
    return chosen.shape[0]


def _medusa(t: _Tensors) -> GuessingHeads:
    """One Segment a head, each over what the model's own head multiplies: x + silu(linear(x)) some
    times, then a matrix of its own, or one that all of them share: the file's, or the model's."""
    width, vocabulary = t.target.width, t.target.vocab_size
    match = next(m for m in map(_MEDUSA.fullmatch, t.file.tensors) if m)
    before, blocks = match[1] or "", match[2] is not None

    def block(head: int, layer: int) -> str:
        return f"blocks.{head}.layers.{layer}" if blocks else f"{before}{head}.{layer}.linear"

    def count(names: Iterable[str]) -> int:
        return sum(1 for _ in takewhile(lambda name: f"{name}.weight" in t.file.tensors, names))

    heads = count(block(n, 0) for n in range(_MOST_HEADS))
    layers = count(block(0, n) for n in range(_MOST_HEADS))
    rows: dict[str, Shape] = {"x": ("T", width)}
    enter = Builder("enter", t, rows)
    segments = [enter.build(x=t.last_norm(enter))]
    for head in range(heads):
        b = Builder(f"head.{head}", t, rows)
        x = b.select("x")
        for layer in range(layers):
            name = block(head, layer)
            bias = t.optional(f"{name}.bias", width)
            product = b.matmul(x, t.own(f"{name}.weight", width, width), bias)
            x = b.add(x, b.activation(product, "silu"))
        own = f"lm_heads.{head}.weight" if blocks else f"{before}{head}.{layers}.weight"
        matrix = t.optional(own, vocabulary, width) or t.optional(
            "lm_head.weight", vocabulary, width
        )
        segments.append(b.build(logits=b.matmul(x, matrix or t.head())))
    model = Model("medusa", tuple(segments), (), vocabulary, width, t.target.context_length)
    return GuessingHeads(model, _seen(t, "medusa"))
