"""The hyperparameters that all families share, read and checked in one place."""

from __future__ import annotations

from strata.errors import UsageError
from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models.errors import ConfigError, MissingTensor, TensorShape
from strata.models.keys import REQUIRED, Keys, quantization_method, several_senses
from strata.records import dataclass

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24
# "No limit" in some files is a number like 1e30 or 2^31; positions are 32-bit here.
MAX_CONTEXT = (1 << 31) - 1
ENDLESS = 1 << 20
# Whose indexers are built (sparse_index.py).
_CHOOSING = (
    *("deepseek32", "glm-dsa", "dots3note", "hy_v4", "minimax-m3", "MiniMaxM3VLForCausalLM"),
    *("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "Dots3NoteForCausalLM", "HYV4ForCausalLM"),
)


@dataclass(frozen=True)
class Config:
    """Sizes of a decoder-only transformer. ``keys`` reads what only one family has.

    ``trained_context`` is what the file states; ``context`` what was asked for, at most that.
    ``windows`` gives each layer's sliding window, 0 where all keys are seen; ``value_dim`` the
    width of a head's values where that is not the keys', ``head_dim``.
    """

    architecture: str
    keys: Keys
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    trained_context: int
    context: int
    tied: bool
    windows: tuple[int, ...]
    value_dim: int = 0

    @property
    def v_dim(self) -> int:
        """Width of a head's values."""
        return self.value_dim or self.head_dim

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def v_width(self) -> int:
        """Width of all value heads together."""
        return self.kv_heads * self.v_dim


def read_config(
    file: ModelFile,
    architecture: str,
    context: int | None,
    *,
    tied: bool = False,
    head_dim: int | None = None,
    ffn_ratio: int | None = None,
    mixed: bool = False,
    experts: bool = False,
    uneven: bool = False,
    latent: bool = False,
    values: bool = False,
    keys: Keys | None = None,
) -> Config:
    """Read the shared hyperparameters.

    The rest are a family's defaults where config.json does not say: ``tied`` head, ``head_dim``
    (else width / heads), feed-forward width as ``ffn_ratio`` times the width. ``mixed``: some
    layers have no attention or no feed-forward; sizes are those of the others (0: none has any).
    ``experts``: whether the family may have a mixture of experts.
    ``uneven``: layers may have sizes of their own; the Config has those of the first with any.
    ``latent``: heads are made otherwise, and their widths are not looked at. ``values``: those of
    values may be another than those of keys. ``keys``: the file's, with what follows from others.
    """
    keys = keys or Keys(file, architecture)
    if file.kind == "gguf":
        head_dim = None
    if not experts and keys.integer("experts", 0, low=0) > 1:
        raise ConfigError(f"'{keys.find('experts')[0]}': this architecture has no experts here")
    _check_quantization(file)
    kinds = keys.find("layer_types")[1]
    listed = len(kinds) if isinstance(kinds, list) and kinds else REQUIRED
    layers = keys.integer("layers", listed, high=MAX_LAYERS)
    width = keys.integer("width", high=MAX_WIDTH)
    if uneven:
        heads = _first(keys, "heads", layers)
        kv_heads = _first(keys, "kv_heads", layers, heads)
    else:
        heads = _size(keys, "heads", layers, 0 if mixed else REQUIRED, MAX_WIDTH, mixed)
        kv_heads = _size(keys, "kv_heads", layers, heads, MAX_WIDTH, mixed)
    if heads % max(kv_heads, 1):
        raise ConfigError(f"'{keys.find('kv_heads')[0]}' is {kv_heads}, no divisor of {heads}")
    if latent:
        kv_heads, head_dim = heads, 1
    if keys.find("head_dim")[1] is None and head_dim is None and width % max(heads, 1):
        raise ConfigError(f"'{keys.find('heads')[0]}' is {heads}, no divisor of width {width}")
    dim = keys.integer("head_dim", head_dim or width // max(heads, 1), high=MAX_WIDTH)
    value_dim = dim if latent else keys.integer("value_dim", dim, high=MAX_WIDTH)
    if value_dim != dim and not values:
        raise ConfigError(f"'{keys.find('value_dim')[0]}' differs from the keys' {dim}")
    trained = read_trained_context(keys)
    if context is not None and not 1 <= context <= trained:
        raise UsageError(f"a context of {context} was asked for; this model has up to {trained}")
    # Files of which every layer has experts may state the width of those alone.
    some = mixed or (experts and keys.integer("experts", 0, low=0) > 0)
    usual = ffn_ratio * width if ffn_ratio else 0 if some else REQUIRED
    if uneven:
        ffn = _first(keys, "ffn", layers)
    else:
        ffn = _size(keys, "ffn", layers, usual, 16 * MAX_WIDTH, mixed)
    return Config(
        architecture=architecture,
        keys=keys,
        layers=layers,
        width=width,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        vocab=_vocabulary(file, keys),
        trained_context=trained,
        context=context or trained,
        tied=_tied(file, keys, tied),
        windows=(0,) * layers,
        value_dim=0 if value_dim == dim else value_dim,
    )


def _size(keys: Keys, name: str, layers: int, default: int, high: int, mixed: bool) -> int:
    """One size for all layers, or for all that have any."""
    if not mixed:
        return keys.integer(name, default, high=high)
    found = {n for n in keys.integers(name, layers, default, high=high) if n}
    if len(found) > 1:
        key = keys.find(name)[0]
        raise ConfigError(f"'{key}' differs from layer to layer: this is not supported")
    return found.pop() if found else 0


def _first(keys: Keys, name: str, layers: int, default: int = REQUIRED) -> int:
    """Of the layers' numbers the first that is not 0."""
    numbers = keys.integers(name, layers, default, high=16 * MAX_WIDTH)
    found = next((n for n in numbers if n), 0)
    if not found:
        raise ConfigError(f"'{keys.find(name)[0]}' is 0 in every layer")
    return found


def read_trained_context(keys: Keys) -> int:
    """The positions that the file states; where an indexer that is not built chooses among more
    than ``top_k`` of them, or blocks of them, so many: as far as all are chosen it changes
    nothing."""
    # Configurations of pure state-space models state none: their state is of a fixed size.
    endless = keys.kind == "huggingface" and keys.find("ssm_states")[1] is not None
    stated = keys.number("context", ENDLESS if endless else REQUIRED, low=1, high=1e38)
    chosen = keys.integer("indexer_top_k", 0, low=0) or MAX_CONTEXT
    chosen *= keys.integer("indexer_block", 1, low=0) or 1
    built = MAX_CONTEXT if keys.architecture in _CHOOSING else chosen
    return min(int(stated), built, MAX_CONTEXT)


def _vocabulary(file: ModelFile, keys: Keys) -> int:
    if file.kind == "huggingface":
        return keys.integer("vocab", high=MAX_VOCABULARY)
    table = file.tensors.get("token_embd.weight")
    if table is not None and len(table.shape) != 2:
        raise TensorShape(
            f"tensor '{table.name}' of shape {list(table.shape)} is no table of rows: this file is "
            f"damaged, or of a model that is not known here"
        )
    if table is None:
        raise MissingTensor("tensor 'token_embd.weight' is missing: this file holds no model")
    return table.shape[0]


def _check_quantization(file: ModelFile) -> None:
    method = quantization_method(file)
    if method is None:
        return
    from strata.formats.foreign import METHODS

    readable = ("fp8", "fbgemm_fp8", *METHODS)
    if method not in readable:
        raise ConfigError(
            f"'quantization_config.quant_method' is {shown(method)}: only "
            f"{', '.join(readable)} are read; use the unquantised model or a GGUF of it"
        )


def _tied(file: ModelFile, keys: Keys, default: bool) -> bool:
    """Whether the head is the embedding table: GGUF says so by leaving the head out."""
    if file.kind == "gguf":
        return "output.weight" not in file.tensors
    # Of several senses the parts' settings and those of the whole may differ.
    if several_senses(file) and file.tensors:
        return not any(name.endswith("lm_head.weight") for name in file.tensors)
    # EXL3 keeps a head of its own, of other bits, where the model has none.
    if quantization_method(file) == "exl3" and "lm_head.weight" in file.tensors:
        return False
    return keys.flag("tied", default)
