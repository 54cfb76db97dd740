"""What the planner knows of a model: from its header, and from the backend that will run it."""

from __future__ import annotations

from collections.abc import Sequence

from strata.backends.profile import ModelProfile, SegmentProfile, UnitProfile
from strata.formats import ModelFile
from strata.plan.routes import HitCurve
from strata.plan.tokenizer_memory import TokenizerOutline
from strata.program import LayerState, Model, StateGroup
from strata.records import dataclass
from strata.text.huggingface import count_merges, count_values
from strata.text.load import gguf_sizes, has_foreign_template

_FAR_MORE = 2
_FEW_VALUES = 20_000


@dataclass(frozen=True)
class Outline:
    """A model's sizes: what its backend says of it, and what any backend has beside that.
    ``row_width``: numbers of a row that it gives, of logits or an embedding. ``whole``: a step
    takes whole texts. ``hits`` were recorded of its routes. ``foreign_template``: it has a chat
    template that is not known to be harmless.
    """

    name: str
    profile: ModelProfile
    vocabulary: int
    row_width: int
    whole: bool
    context: int
    tokenizer: TokenizerOutline
    foreign_template: bool = False
    hits: tuple[HitCurve, ...] = ()

    @property
    def segments(self) -> tuple[SegmentProfile, ...]:
        """The Segments in running order."""
        return self.profile.segments

    @property
    def units(self) -> tuple[UnitProfile, ...]:
        """The WeightUnits of all Segments, in running order."""
        return self.profile.units

    @property
    def vector_bytes(self) -> int:
        """Bytes of all norms and biases."""
        return self.profile.vector_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of all matrices that a sweep multiplies with, as the file has them."""
        return self.profile.streamed_bytes

    def reads(self, tile_bytes: int) -> int:
        """Reads of a sweep in which everything streams in tiles of this size."""
        return self.profile.reads(tile_bytes)

    @property
    def state(self) -> tuple[LayerState, ...]:
        """What each layer keeps of a sequence."""
        return self.profile.state

    @property
    def groups(self) -> tuple[StateGroup, ...]:
        """Layers whose state is kept for the same time."""
        return self.profile.groups

    def kv_bytes(self, blocks: Sequence[int], kv_type: str) -> int:
        """Bytes of so many blocks of each group of state."""
        return self.profile.kv_bytes(blocks, kv_type)


def outline(
    name: str,
    model: Model,
    file: ModelFile,
    profile: ModelProfile,
    hits: tuple[HitCurve, ...] = (),
) -> Outline:
    """The Outline of a Model that was built from ``file``, by what its backend says of it."""
    return Outline(
        name,
        profile,
        model.vocab_size,
        model.row_width,
        not model.causal,
        model.context_length,
        tokenizer_outline(model, file),
        has_foreign_template(file),
        hits,
    )


def tokenizer_outline(model: Model, file: ModelFile) -> TokenizerOutline:
    """From the metadata, or from a tokenizer.json that is here, whose tokens are the model's unless
    there are far more of them. For one that is not, twice as many merges as tokens are assumed, as
    the largest tokenizers have them."""
    counted = gguf_sizes(file)
    if counted is not None:
        tokens, merges = counted
        return TokenizerOutline("bpe" if merges else "sentencepiece", tokens, merges)
    tokens = model.vocab_size
    if file.kind == "gguf":
        return TokenizerOutline("bpe", tokens, 2 * tokens)
    counted = count_merges(file.path)
    merges_here, pairs = counted or (2 * tokens, True)
    if counted is not None:
        beside = count_values(file.path) - merges_here * (1 + pairs)
        # Added tokens have some values each.
        tokens = beside if beside > _FAR_MORE * tokens + _FEW_VALUES else tokens
    return TokenizerOutline("json pairs" if pairs else "json", tokens, merges_here)
