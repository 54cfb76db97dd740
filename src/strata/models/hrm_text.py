"""HRM-Text: two stacks of layers that run again and again, the low one several times for each time
of the high one, each over the sum of what both gave last (arXiv:2506.21734).

A file states as many layers as are run; each keeps keys and values of its own.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import MAX_LAYERS, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys, real
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an HRM-Text file."""
    keys = Keys(file, architecture)
    if file.kind != "gguf" and not keys.stated("stack_layers"):
        keys = keys.stating(_run(keys))
    c = read_config(file, architecture, context, keys=keys)
    each, low = _stacks(c)
    frame = decoder.frame_tensors(c)
    del frame["output_norm.weight"]
    tensors = {**frame, "hrm.z_l_init": Tensor("{p}z_L_init", (c.width,))}
    for i in range(c.layers):
        run, at = divmod(i, each)
        if file.kind == "gguf":
            tensors |= _of_run(c, i, at + (each if _is_high(run, low) else 0))
        else:
            tensors |= _of_stack(c, i, f"{'H' if _is_high(run, low) else 'L'}_module.layers.{at}")
    unused = (*decoder.harmless(c), r"blk\.\d+\.\w+\.scale")
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    rope, eps = read_rope(c, "neox"), decoder.rms_eps(c)
    scale = c.keys.number("embedding_scale", 0.0) or 1.0
    if file.kind != "gguf" and c.keys.find("embedding_scale")[1] is None:
        key = "initializer_range"
        scale = 1 / real(key, c.keys.raw(key) or 0.02, 1e-6, 1.0)

    def norm(b: Builder, x: str) -> str:
        return b.rms_norm(x, None, eps, c.width)

    def embed(b: Builder) -> str:
        x = b.embed("token_embd.weight", scale)
        return b.join(b.shift(x, "hrm.z_l_init"), x, heads=1)

    def layer(b: Builder, pair: str, i: int) -> str:
        """The layer that runs as the ``i``-th. Between layers the value of the stack that runs and
        that of the other one lie side by side."""
        x = b.columns(pair, head_dim=2 * c.width, start=0, width=c.width)
        other = b.columns(pair, head_dim=2 * c.width, start=c.width, width=c.width)
        run, at = divmod(i, each)
        h = decoder.attention(b, c, catalog, norm(b, x), i, rope=rope, gate="sigmoid")
        x = b.add(x, h)
        x = b.add(x, decoder.gated(b, catalog, norm(b, x), i, "silu"))
        if at < each - 1:
            return b.join(x, other, heads=1)
        x = norm(b, x)
        if i == c.layers - 1:
            return b.join(x, other, heads=1)
        # The next stack starts with the sum, and what it is not the value of is kept.
        is_next_high = _is_high(run + 1, low)
        kept = x if is_next_high != _is_high(run, low) else other
        return b.join(b.add(x, other), kept, heads=1)

    def logits(b: Builder, pair: str) -> str:
        x = b.columns(pair, head_dim=2 * c.width, start=0, width=c.width)
        return decoder.head(b, c, x)

    return decoder.assemble(c, catalog, embed=embed, layer=layer, head=logits, hidden=2 * c.width)


def _of_run(c: Config, i: int, block: int) -> dict[str, Tensor]:
    """The tensors of the layer that runs as the ``i``-th, which the file has as ``block``.

    Numbers beside products are those of the run, as llama.cpp has it.
    """
    tensors = {
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        "blk.{i}.attn_gate.weight": Tensor(None, (c.q_width, c.width)),
        **decoder.gated_tensors(c),
    }
    out = {}
    for name, t in tensors.items():
        stored = name.replace("{i}", str(i if name.endswith(".scale") else block))
        part = Part(stored, "", 0, t.shape[0])
        out[name.replace("{i}", str(i))] = Tensor(None, t.shape, t.optional, part=part, apart=False)
    return out


def _of_stack(c: Config, i: int, block: str) -> dict[str, Tensor]:
    """The tensors of the layer that runs as the ``i``-th, which a directory has as ``block``:
    apart, or the gate with q, k and v in one and gate and up in another."""
    inner = ("gate", "q", "k", "v")
    places = {
        **{f"attn_{part}": (f"self_attn.{part}_proj", "attn.gqkv_proj", inner) for part in inner},
        "attn_output": ("self_attn.o_proj", "attn.o_proj", ("output",)),
        "ffn_gate": ("mlp.gate_proj", "mlp.gate_up_proj", ("gate", "up")),
        "ffn_up": ("mlp.up_proj", "mlp.gate_up_proj", ("gate", "up")),
        "ffn_down": ("mlp.down_proj", "mlp.down_proj", ("down",)),
    }
    tensors = {
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        "blk.{i}.attn_gate.weight": Tensor(None, (c.q_width, c.width)),
        **decoder.gated_tensors(c),
    }
    out = {}
    for name, t in tensors.items():
        stem = name.removeprefix("blk.{i}.").removesuffix(".weight")
        apart, fused, parts = places[stem]
        rows, at = t.shape[0], parts.index(stem.split("_")[1])
        part = Part("", f"{{p}}{block}.{fused}.weight", at * rows, len(parts) * rows)
        name = name.replace("{i}", str(i))
        out[name] = replace(t, huggingface=f"{{p}}{block}.{apart}.weight", part=part)
    return out


def _is_high(run: int, low: int) -> bool:
    """Whether the ``run``-th stack is the high one, which comes after ``low`` low ones."""
    return run % (low + 1) == low


def _run(keys: Keys) -> dict[str, int]:
    """How many layers are run, of a directory that states those of a stack alone."""
    each = keys.integer("layers", high=MAX_LAYERS)
    high, low = (keys.integer(name, high=MAX_LAYERS) for name in ("high_cycles", "low_cycles"))
    return {"stack_layers": each, "layers": each * high * (low + 1)}


def _stacks(c: Config) -> tuple[int, int]:
    """Layers of a stack, and how often the low one runs for each time of the high one."""
    names = ("stack_layers", "high_cycles", "low_cycles")
    each, high, low = (c.keys.integer(name, high=MAX_LAYERS) for name in names)
    if each * high * (low + 1) != c.layers:
        key = c.keys.find("layers")[0]
        raise ConfigError(f"'{key}' is {c.layers}: {each * high * (low + 1)} layers are run")
    return each, low
