"""Qwen 3.8 Flash Next: Qwen 3.5's layers with experts on several residual streams, and in one of
them rows of a table that hashes of the last tokens choose.

Source: the keys and tensors of its GGUF files. Norms of the streams stand where others have a
layer's. Its indexer, which chooses blocks of positions, is left out where it would choose all of
them (``config.read_trained_context``).
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, experts, hyper_connections, qwen35
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.rope import read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model, Recurrent
from strata.program.ops.recurrent import MOST_LOOKUPS
from strata.program.ops.streams import MOST_STREAMS
from strata.records import dataclass

_TABLE = "per_layer_token_embd.weight"
_MOST_TOKENS, _MOST_TAPS = 16, 16
_MOST_ROWS, _MOST_TOKEN = 1 << 40, (1 << 24) - 1


@dataclass(frozen=True)
class GatedStreams:
    """So many streams of a width. A half of a layer reads their mean, each column times a gate that
    a product of low ``rank`` makes of all of them, and what it gives is added to each stream times
    a weight."""

    count: int
    width: int
    rank: int
    eps: float

    def read(self, b: Builder, x: str, name: str) -> tuple[str, str]:
        """What goes into a half, and the normed streams of which weights are made."""
        even = b.grouped_rms_norm(x, f"{name}_norm.weight", self.count, self.eps)
        with b.unit("streams"):
            low = b.scale(b.matmul(even, f"{name}_down.weight"), 1 / self.count)
            gate = b.matmul(b.activation(low, "silu"), f"{name}_up.weight")
        gated, whole = b.glu(gate, even, "sigmoid"), self.count * self.width
        out = b.columns(gated, head_dim=whole, start=0, width=self.width)
        for i in range(1, self.count):
            part = b.columns(gated, head_dim=whole, start=i * self.width, width=self.width)
            out = b.add(out, part)
        return b.scale(out, 1 / self.count), even

    def write(self, b: Builder, x: str, given: str, even: str, name: str) -> str:
        """The streams with what a half gave added to each."""
        with b.unit("streams"):
            weights = b.matmul(even, f"{name}_inject.weight")
        weights = b.activation(b.scale(weights, 1 / self.count), "sigmoid")
        wide = hyper_connections.spread(b, given, self.count)
        return b.add(x, b.mul(wide, b.scale(weights, 2.0)))


@dataclass(frozen=True)
class Ngrams:
    """What layer ``layer`` adds to the streams: by how many tokens, with which hashes, how many
    rows of which ``width``; ``taps`` of a convolution over rows as far apart as n-grams are long.
    """

    layer: int
    multipliers: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    end: int
    width: int
    taps: int

    @property
    def rows(self) -> int:
        """As many as the table has at least."""
        return max(at + n for at, n in zip(self.starts, self.sizes, strict=True))

    def add(self, b: Builder, x: str, s: GatedStreams, kept: Kept) -> str:
        """The streams, and to each of them what the rows give, as far as it asks for it."""
        name, n = f"blk.{self.layer}.ple_", len(self.multipliers)
        found = b.ngrams(
            _TABLE,
            layer=kept.add(Recurrent(((n - 1,),))),
            multipliers=self.multipliers,
            starts=self.starts,
            sizes=self.sizes,
            end=self.end,
        )
        with b.unit("ngrams"):
            key, value = (b.matmul(found, f"{name}{part}.weight") for part in ("key", "value"))
        key, query = (
            b.grouped_rms_norm(y, f"{name}norm_{part}.weight", s.count, s.eps)
            for y, part in ((key, "key"), (x, "query"))
        )
        gate = b.scale(b.group_sum(b.mul(key, query), s.width), s.width**-0.5)
        gate = b.activation(b.activation(gate, "signed_sqrt"), "sigmoid")
        gated = b.mul(hyper_connections.spread(b, value, s.count), gate)
        mixed = b.short_conv(
            b.grouped_rms_norm(gated, f"{name}norm_conv.weight", s.count, s.eps),
            f"{name}conv1d.weight",
            layer=kept.rows((self.taps - 1) * n + 1, s.count * s.width),
            dilation=n,
        )
        return b.add(x, b.add(gated, b.activation(mixed, "silu")))


def _streams(c: Config, eps: float) -> GatedStreams:
    count = c.keys.integer("streams", low=2, high=MOST_STREAMS)
    if count * c.width > MAX_WIDTH:
        key = c.keys.find("streams")[0]
        raise ConfigError(f"'{key}' is {count}: streams of {c.width} are {MAX_WIDTH} at most")
    return GatedStreams(count, c.width, c.keys.integer("stream_rank", high=MAX_WIDTH), eps)


def _ngrams(c: Config) -> Ngrams | None:
    """None where no layer has any."""
    keys = c.keys
    if not keys.stated("ngram_layers"):
        return None
    layer = keys.integers("ngram_layers", 1, high=c.layers - 1)[0]
    tokens = keys.integer("ngram_tokens", low=2, high=_MOST_TOKENS)
    lookups = (tokens - 1) * keys.integer("ngram_lookups", high=MOST_LOOKUPS)
    if lookups > MOST_LOOKUPS:
        key = keys.find("ngram_lookups")[0]
        raise ConfigError(f"'{key}': {lookups} rows for a token, {MOST_LOOKUPS} at most")
    multipliers = keys.integers("ngram_multipliers", tokens, high=(1 << 64) - 1)
    starts, sizes = (
        tuple(keys.integers(name, lookups, high=_MOST_ROWS))
        for name in ("ngram_starts", "ngram_sizes")
    )
    if not all(sizes):
        raise ConfigError(f"'{keys.find('ngram_sizes')[0]}': a row at least is expected")
    width = keys.integer("per_layer", high=MAX_WIDTH)
    if lookups * width > MAX_WIDTH:
        key = keys.find("per_layer")[0]
        raise ConfigError(f"'{key}' is {width}: {lookups} rows of it are {MAX_WIDTH} at most")
    end = keys.integer("ngram_end", low=0, high=_MOST_TOKEN)
    taps = keys.integer("ngram_taps", low=2, high=_MOST_TAPS)
    if (taps - 1) * tokens >= 64:
        key = keys.find("ngram_taps")[0]
        raise ConfigError(f"'{key}' is {taps}: {tokens} rows apart they reach back too far")
    return Ngrams(layer, tuple(multipliers), starts, sizes, end, width, taps)


def _tensors(file: ModelFile, c: Config, s: GatedStreams, g: Ngrams | None) -> dict[str, Tensor]:
    """Norms have an axis for the streams, or one for all."""
    whole = s.count * s.width

    def norm(name: str) -> Tensor:
        info = file.tensors.get(name.replace("{i}", "0"))
        flat = info is not None and len(info.shape) == 1
        return Tensor(None, (whole,) if flat else (s.count, s.width))

    def streams(name: str) -> dict[str, Tensor]:
        return {
            f"{name}_norm.weight": norm(f"{name}_norm.weight"),
            f"{name}_down.weight": Tensor(None, (s.rank, whole)),
            f"{name}_up.weight": Tensor(None, (whole, s.rank)),
        }

    tensors = decoder.frame_tensors(c) | streams("output_hc")
    del tensors["output_norm.weight"]
    for half in ("attn", "ffn"):
        name = f"blk.{{i}}.hc_{half}"
        tensors |= streams(name)
        tensors[f"{name}_inject.weight"] = Tensor(None, (s.count, whole))
    if g is not None:
        table, name = file.tensors.get(_TABLE), f"blk.{g.layer}.ple_"
        # Converters make it longer than the hashes reach.
        longer = table is not None and len(table.shape) == 2
        rows = max(g.rows, table.shape[0]) if table is not None and longer else g.rows
        made = len(g.starts) * g.width
        tensors |= {
            _TABLE: Tensor(None, (rows, g.width)),
            f"{name}key.weight": Tensor(None, (whole, made)),
            f"{name}value.weight": Tensor(None, (c.width, made)),
            f"{name}conv1d.weight": Tensor(None, (whole, g.taps)),
        }
        for part in ("key", "query", "conv"):
            key = f"{name}norm_{part}.weight"
            tensors[key] = norm(key)
    return tensors


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of such a GGUF file."""
    keys = Keys(file, architecture).without("indexer_block")
    c = read_config(file, architecture, context, head_dim=256, experts=True, keys=keys)
    c, further = decoder.without_further(c)
    m = experts.read_mixture(c, renormalise=True)
    if m is None:
        raise ConfigError(f"'{keys.find('experts')[0]}' is 0: all layers of this one have experts")
    d, attending, eps = qwen35.read_delta(c), qwen35.attends(c), decoder.rms_eps(c)
    s, g, kept = _streams(c, eps), _ngrams(c), Kept()
    attention = qwen35.attention_tensors(c)
    # llama.cpp reads biases of q, k and v, and does not add them.
    attention = {name: t for name, t in attention.items() if not name.endswith(".bias")}
    tensors = {
        **_tensors(file, c, s, g),
        **on_layers(attention, [i for i, a in enumerate(attending) if a]),
        **on_layers(qwen35.delta_tensors(c, d), [i for i, a in enumerate(attending) if not a]),
        **experts.mixture_tensors(c, m),
    }
    unread = (r"blk\.\d+\.indexer\..*", r"blk\.\d+\.attn_[qkv]\.bias")
    harmless = (*decoder.harmless(c), further, *unread)
    catalog = Catalog(file, tensors, c.layers, harmless=harmless)
    rope = read_rope(c, "neox")

    def layer(b: Builder, x: str, i: int) -> str:
        if g is not None and i == g.layer:
            x = g.add(b, x, s, kept)
        h, even = s.read(b, x, f"blk.{i}.hc_attn")
        if attending[i]:
            h = qwen35.attention(b, c, catalog, kept, h, i, rope, eps)
        else:
            h = qwen35.delta(b, d, catalog, kept, h, i, eps, gate="sigmoid")
        x = s.write(b, x, h, even, f"blk.{i}.hc_attn")
        h, even = s.read(b, x, f"blk.{i}.hc_ffn")
        h = experts.feed_forward(b, catalog, m, h, i)
        return s.write(b, x, h, even, f"blk.{i}.hc_ffn")

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: hyper_connections.spread(b, b.embed("token_embd.weight"), s.count),
        layer=layer,
        head=lambda b, x: decoder.head(b, c, s.read(b, x, "output_hc")[0]),
        state=kept.state,
        hidden=s.count * c.width,
    )
