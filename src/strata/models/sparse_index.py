"""Indexers: small queries and keys by which a row chooses the keys that its attention sees.

Sources: DeepSeek-V3.2 (arXiv:2512.02556); layers that take over what one before them chose
(GLM-5.2, arXiv:2603.12201). A key weighs the sum over the heads of a weight, made of the row, times
what of the product of query and key is above zero; as many as the file states are seen.
"""

from __future__ import annotations

from dataclasses import replace

from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.rope import Rope
from strata.models.tensors import Tensor, on_layers
from strata.program import Builder, PagedKV
from strata.records import dataclass

# From so many positions on GGUF files of GLM-5 are of the one whose layers share.
_SHARING_CONTEXT = 1 << 20


@dataclass(frozen=True)
class SparseIndex:
    """``heads`` queries and one key of ``width``, of which ``rope`` numbers are turned (neighbours
    or halves: ``style``), the first, or those ``behind``; keys have a norm over ``eps``. ``most``
    keys are chosen. Layers that are not ``full`` see what the one before them sees, or, where none
    is ``shared``, have nothing to choose. ``first`` is the number of the first full layer's keys
    among what is kept."""

    heads: int
    width: int
    rope: int
    most: int
    full: tuple[bool, ...]
    shared: bool
    first: int
    style: str
    behind: bool = False
    eps: float = 1e-6

    @property
    def carried(self) -> int:
        """How wide that is which goes from layer to layer behind the residual."""
        return self.most if self.shared else 0

    def state(self) -> list[PagedKV]:
        """What full layers keep."""
        return [PagedKV(1, self.width, 1, v_in_k=True, index=True)] * sum(self.full)

    def split(self, b: Builder, row: str, width: int) -> tuple[str, str]:
        """The residual, and what is carried behind it, empty where nothing is."""
        if not self.carried:
            return row, ""
        whole = width + self.carried
        known = b.columns(row, head_dim=whole, start=width, width=self.carried)
        return b.columns(row, head_dim=whole, start=0, width=width), known

    def beside(self, b: Builder, x: str, chosen: str) -> str:
        """What goes on to the next layer."""
        return b.join(x, chosen, heads=1) if self.carried else x

    def begin(self, b: Builder, x: str, width: int) -> str:
        """What goes into the first layer, which chooses before anything carried is looked at."""
        if not self.carried:
            return x
        return b.join(x, b.columns(x, head_dim=width, start=0, width=self.carried), heads=1)

    def choose(self, b: Builder, x: str, query: str, i: int, rope: Rope) -> str:
        """Positions that rows of layer i see; ``query`` is what attention's queries are made of."""
        name = f"blk.{i}.indexer."

        def turned(y: str, heads: int) -> str:
            still, width = self.width - self.rope, self.width
            if self.behind:
                ahead = b.columns(y, head_dim=width, start=0, width=still)
                y, width = b.columns(y, head_dim=width, start=still, width=self.rope), self.rope
            y = b.rope(
                y,
                head_dim=width,
                inv_freq=rope.inv_freq,
                style=self.style,
                mscale=rope.mscale,
                factors=rope.factors,
            )
            return b.join(ahead, y, heads=heads) if self.behind else y

        q = turned(b.matmul(query, f"{name}attn_q_b.weight"), self.heads)
        k = b.matmul(x, f"{name}attn_k.weight")
        k = turned(b.layer_norm(k, f"{name}k_norm.weight", f"{name}k_norm.bias", self.eps), 1)
        w = b.scale(b.matmul(x, f"{name}proj.weight"), (self.heads * self.width) ** -0.5)
        return b.top_keys(q, k, w, layer=self.first + sum(self.full[:i]), most=self.most)


def read_index(
    c: Config,
    q_rank: int,
    rope: int,
    *,
    style: str,
    full: tuple[bool, ...] | None = None,
    behind: bool = False,
    eps: float = 1e-6,
) -> SparseIndex | None:
    """What a file states of its indexers; None where no more positions come than are chosen.

    ``full`` are the layers with one where no layer takes over what another chose; the rest as
    ``SparseIndex`` has it. Raises ConfigError for what fits no attention.
    """
    most = c.keys.integer("indexer_top_k", 0, low=0)
    if not most or c.trained_context <= most:
        return None
    heads = c.keys.integer("indexer_heads", high=4096)
    width = c.keys.integer("indexer_width", high=MAX_WIDTH)
    if not q_rank:
        raise ConfigError(f"'{c.keys.find('q_rank')[0]}' is missing: an indexer's queries need it")
    if rope > width - behind:
        key = c.keys.find("indexer_width")[0]
        raise ConfigError(f"'{key}' is {width}: {rope} numbers of it are to be turned")
    index = SparseIndex(
        heads, width, rope, most, full or _full(c), full is None, c.layers, style, behind, eps
    )
    if full is None:
        index = replace(index, shared=not all(index.full))
    if index.shared and not index.full[0]:
        key = c.keys.find("indexer_kinds")[0]
        raise ConfigError(f"'{key}': the first layer shares what no layer before it has chosen")
    if index.carried > c.width:
        key = c.keys.find("indexer_top_k")[0]
        raise ConfigError(f"'{key}' is {most}: {c.width} at most go from layer to layer")
    return index


def _full(c: Config) -> tuple[bool, ...]:
    """Which layers choose."""
    keys = c.keys
    if c.architecture == "deepseek32":  # writers that know all keys say something of its layers
        return (True,) * c.layers
    if keys.kind == "gguf" and keys.stated("indexer_kinds"):
        return tuple(kind > 0 for kind in keys.integers("indexer_kinds", c.layers, high=1))
    if keys.kind == "gguf":
        sharing = c.architecture == "glm-dsa" and c.trained_context >= _SHARING_CONTEXT
        return tuple(not sharing or max(i - 2, 0) % 4 == 0 for i in range(c.layers))
    listed = keys.texts("indexer_kinds", c.layers, {"full", "shared"})
    if listed is not None:
        return tuple(kind == "full" for kind in listed)
    pattern = keys.raw("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or len(pattern) != c.layers or set(pattern) - {"F", "S"}:
            raise ConfigError(f"'index_topk_pattern': F or S for each of {c.layers} layers")
        return tuple(letter == "F" for letter in pattern)
    every = max(keys.integer("indexer_every", 1, low=0), 1)
    offset = keys.integer("indexer_offset", 2, low=0)
    return tuple(max(i - offset + 1, 0) % every == 0 for i in range(c.layers))


def index_tensors(c: Config, index: SparseIndex | None, q_rank: int) -> dict[str, Tensor]:
    """The tensors of full layers."""
    if index is None:
        return {}
    stored, name = "{p}layers.{i}.self_attn.indexer.", "blk.{i}.indexer."
    wanted = {
        f"{name}attn_q_b.weight": ("wq_b.weight", (index.heads * index.width, q_rank)),
        f"{name}attn_k.weight": ("wk.weight", (index.width, c.width)),
        f"{name}k_norm.weight": ("k_norm.weight", (index.width,)),
        f"{name}k_norm.bias": ("k_norm.bias", (index.width,)),
        f"{name}proj.weight": ("weights_proj.weight", (index.heads, c.width)),
    }
    tensors = {key: Tensor(f"{stored}{theirs}", shape) for key, (theirs, shape) in wanted.items()}
    return on_layers(tensors, (i for i, full in enumerate(index.full) if full))


def unread(index: object | None) -> tuple[str, ...]:
    """Patterns of an indexer's tensors, where it is left out."""
    return () if index else (r"(blk|.*layers)\.\d+\.(self_attn\.)?index(er\.|_).*",)
