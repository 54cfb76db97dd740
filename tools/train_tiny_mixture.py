"""Train a tiny mixture of experts, so that there are routes that were learned.

    python tools/train_tiny_mixture.py TEXT OUT.gguf [--steps 1300] [--threads 1]

A byte-level BPE of 2048 tokens and a Qwen3-MoE of 8 layers with 32 experts each, 4 of them used,
3.8 million weights, are trained on TEXT (the validation part of WikiText-2; its last twentieth is
held back, and the weights that do best on it are kept). The file has Q8_0 matrices and is below
5 MB. What is learned depends on the processor's arithmetic; tests use the file that is kept as
tests/goldens/trained-mixture.gguf and never train.

Sources: Qwen3's layer; the balancing loss of Switch Transformers (arXiv:2101.03961), as Qwen3-MoE
takes it over all layers.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, END = 2048, "<|end|>"
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD = 8, 128, 4, 2, 32
EXPERTS, USED, HIDDEN = 32, 4, 32
CONTEXT, BATCH = 128, 12
BASE, EPSILON = 10000.0, 1e-6
BALANCE = 0.01


class Mixture(nn.Module):
    """The experts of a layer: softmax over all, the best four, made to sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(EXPERTS, WIDTH) * 0.02)
        self.gate = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) * 0.05)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) * 0.05)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * 0.03)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [n, width] to rows, and the balancing loss: 1 where all experts are used alike."""
        n = len(x)
        chances = F.softmax(x @ self.router.T, dim=-1)
        weights, chosen = chances.topk(USED, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        flat = chosen.flatten()
        counts = torch.bincount(flat, minlength=EXPERTS)
        # The rows of each expert, behind each other, padded to those of the one that has most.
        order = flat.argsort(stable=True)
        ends = counts.cumsum(0)
        within = torch.arange(len(flat)) - (ends - counts)[flat[order]]
        place = torch.full((EXPERTS, int(counts.max())), n * USED)
        place[flat[order], within] = order
        rows = torch.cat([x, x.new_zeros(1, WIDTH)])[(place // USED)]
        gated = F.silu(torch.bmm(rows, self.gate.transpose(1, 2)))
        hidden = gated * torch.bmm(rows, self.up.transpose(1, 2))
        out = torch.bmm(hidden, self.down.transpose(1, 2))
        scale = torch.cat([weights.flatten(), weights.new_zeros(1)])[place]
        summed = x.new_zeros(n + 1, WIDTH)
        summed = summed.index_add(
            0, (place // USED).flatten(), (out * scale[..., None]).flatten(0, 1)
        )
        balance = EXPERTS * ((counts / (n * USED)) * chances.mean(0)).sum()
        return summed[:n], balance


class Layer(nn.Module):
    """Attention with norms of query and key heads, then experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(HEAD)), nn.Parameter(torch.ones(HEAD))
        self.q = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.v = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.mixture = Mixture()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, drop: float) -> tuple[Tensor, Tensor]:
        """[batch, length, width] to the same, and the balancing loss."""
        batch, length, _ = x.shape
        h = F.rms_norm(x, (WIDTH,), self.norm1, EPSILON)
        q = self.q(h).view(batch, length, HEADS, HEAD)
        k = self.k(h).view(batch, length, KV_HEADS, HEAD)
        v = self.v(h).view(batch, length, KV_HEADS, HEAD)
        q = turn(F.rms_norm(q, (HEAD,), self.q_norm, EPSILON), cos, sin)
        k = turn(F.rms_norm(k, (HEAD,), self.k_norm, EPSILON), cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.dropout(self.out(a.transpose(1, 2).reshape(batch, length, -1)), drop)
        h = F.rms_norm(x, (WIDTH,), self.norm2, EPSILON)
        y, balance = self.mixture(h.flatten(0, 1))
        return x + F.dropout(y.view_as(x), drop), balance


class Model(nn.Module):
    """The embedding is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.05)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        angles = torch.arange(CONTEXT)[:, None] * BASE ** -(torch.arange(0, HEAD, 2) / HEAD)
        self.register_buffer("cos", angles.cos().repeat(1, 2)[None, :, None])
        self.register_buffer("sin", angles.sin().repeat(1, 2)[None, :, None])

    def forward(self, tokens: Tensor, drop: float = 0.0) -> tuple[Tensor, Tensor]:
        """Tokens [batch, length] to logits, and the mean balancing loss of the layers."""
        x = F.dropout(self.embedding[tokens], drop)
        balance = torch.zeros(())
        for layer in self.layers:
            x, one = layer(x, self.cos, self.sin, drop)
            balance = balance + one / LAYERS
        return F.rms_norm(x, (WIDTH,), self.norm, EPSILON) @ self.embedding.T, balance


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, pairs half a head apart."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE of its own, with GPT-2's words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY - 1
    return tokenizer


def held_back_loss(model: Model, tokens: Tensor) -> float:
    """Nats a token over windows behind each other."""
    count = (len(tokens) - 1) // CONTEXT
    with torch.no_grad():
        losses = []
        for first in range(0, count, BATCH):
            at = range(first, min(first + BATCH, count))
            x = torch.stack([tokens[i * CONTEXT : (i + 1) * CONTEXT] for i in at])
            y = torch.stack([tokens[i * CONTEXT + 1 : (i + 1) * CONTEXT + 1] for i in at])
            logits, _ = model(x)
            losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))
    return float(sum(losses)) / (count * CONTEXT)


def write(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    """A Qwen3-MoE GGUF file with Q8_0 matrices."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("Trained tiny mixture")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(BASE)
    writer.add_rope_dimension_count(HEAD)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    writer.add_expert_feed_forward_length(HIDDEN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    write_vocabulary(writer, tokenizer)
    for name, tensor in _tensors(model):
        array = tensor.detach().numpy().astype(np.float32)
        if array.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, array)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Model) -> list[tuple[str, Tensor]]:
    out: list[tuple[str, Tensor]] = [("token_embd.weight", model.embedding)]
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        tensors = {
            "attn_norm": layer.norm1,
            "attn_q": layer.q.weight,
            "attn_k": layer.k.weight,
            "attn_v": layer.v.weight,
            "attn_q_norm": layer.q_norm,
            "attn_k_norm": layer.k_norm,
            "attn_output": layer.out.weight,
            "ffn_norm": layer.norm2,
            "ffn_gate_inp": layer.mixture.router,
            "ffn_gate_exps": layer.mixture.gate,
            "ffn_up_exps": layer.mixture.up,
            "ffn_down_exps": layer.mixture.down,
        }
        out += [(f"blk.{i}.{name}.weight", tensor) for name, tensor in tensors.items()]
    return [*out, ("output_norm.weight", model.norm)]


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """The keys of a byte-level BPE, with one more token that ends a text."""
    bpe: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, END])
    writer.add_token_types([normal] * len(tokens) + [control])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens))
    writer.add_bos_token_id(len(tokens))
    writer.add_add_bos_token(False)


def main() -> None:
    """Train, and write the file whenever the text that is held back says that it is better."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    text = given.text.read_text(encoding="utf-8")
    tokenizer = train_tokenizer(text)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    cut = len(tokens) * 19 // 20
    training, held_back = tokens[:cut], tokens[cut:]
    model = Model()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95))
    print(f"{len(tokens)} tokens, {sum(p.numel() for p in model.parameters())} weights", flush=True)
    best, begun = math.inf, time.process_time()
    for step in range(given.steps):
        rate = 2e-3 * min(1, (step + 1) / 100) * (0.05 + 0.95 * (1 - step / given.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(len(training) - CONTEXT - 1, (BATCH,))
        x = torch.stack([training[i : i + CONTEXT] for i in at])
        y = torch.stack([training[i + 1 : i + CONTEXT + 1] for i in at])
        logits, balance = model(x, 0.1)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        (loss + BALANCE * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == given.steps:
            now = held_back_loss(model, held_back)
            spent = time.process_time() - begun
            line = f"{step + 1}: {loss:.3f}, held back {now:.3f}, balance {balance:.2f}"
            print(f"{line}, {spent:.0f} s", flush=True)
            if now < best:
                best = now
                write(model, tokenizer, given.out)


if __name__ == "__main__":
    main()
