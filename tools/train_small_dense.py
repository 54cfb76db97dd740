"""Train a small dense model whose rows are whole blocks of 256, for comparisons of quantisers.

    python tools/train_small_dense.py TEXT OUT.gguf [--steps 400] [--threads 2]

A byte-level BPE of 2048 tokens and a Qwen3 of 4 layers of 256, feed-forward layers of 768 and a
head of its own, 4.2 million weights, are trained on TEXT from scratch; its last twentieth is held
back, and the weights that do best on it are kept. The file has F16 matrices. What is learned
depends on the processor's arithmetic.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from train_tiny_mixture import BASE, EPSILON, VOCABULARY, train_tokenizer, turn, write_vocabulary

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN = 4, 256, 4, 2, 64, 768
CONTEXT, BATCH, RATE = 256, 8, 3e-3


class Layer(nn.Module):
    """Attention with norms of query and key heads, then a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(HEAD)), nn.Parameter(torch.ones(HEAD))
        self.q = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.v = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        batch, length, _ = x.shape
        h = F.rms_norm(x, (WIDTH,), self.norm1, EPSILON)
        q = self.q(h).view(batch, length, HEADS, HEAD)
        k = self.k(h).view(batch, length, KV_HEADS, HEAD)
        v = self.v(h).view(batch, length, KV_HEADS, HEAD)
        q = turn(F.rms_norm(q, (HEAD,), self.q_norm, EPSILON), cos, sin)
        k = turn(F.rms_norm(k, (HEAD,), self.k_norm, EPSILON), cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(a.transpose(1, 2).reshape(batch, length, -1))
        h = F.rms_norm(x, (WIDTH,), self.norm2, EPSILON)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """Tokens to logits; the head is not the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.05)
        self.head = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        angles = torch.arange(CONTEXT)[:, None] * BASE ** -(torch.arange(0, HEAD, 2) / HEAD)
        self.register_buffer("cos", angles.cos().repeat(1, 2)[None, :, None])
        self.register_buffer("sin", angles.sin().repeat(1, 2)[None, :, None])

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, length] to logits."""
        x = self.embedding[tokens]
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.rms_norm(x, (WIDTH,), self.norm, EPSILON) @ self.head.T


def held_back_loss(model: Model, tokens: Tensor) -> float:
    """Nats a token over windows behind each other."""
    count = (len(tokens) - 1) // CONTEXT
    total = 0.0
    with torch.no_grad():
        for first in range(0, count, BATCH):
            at = range(first, min(first + BATCH, count))
            x = torch.stack([tokens[i * CONTEXT : (i + 1) * CONTEXT] for i in at])
            y = torch.stack([tokens[i * CONTEXT + 1 : (i + 1) * CONTEXT + 1] for i in at])
            logits = model(x).flatten(0, 1)
            total += float(F.cross_entropy(logits, y.flatten(), reduction="sum"))
    return total / (count * CONTEXT)


def write(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    """A Qwen3 GGUF file with F16 matrices."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("Trained small dense model")
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
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    write_vocabulary(writer, tokenizer)
    for name, tensor in _tensors(model):
        array = tensor.detach().numpy()
        writer.add_tensor(name, array.astype(np.float32 if array.ndim == 1 else np.float16))
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
            "ffn_gate": layer.gate.weight,
            "ffn_up": layer.up.weight,
            "ffn_down": layer.down.weight,
        }
        out += [(f"blk.{i}.{name}.weight", tensor) for name, tensor in tensors.items()]
    return [*out, ("output_norm.weight", model.norm), ("output.weight", model.head)]


def main() -> None:
    """Train, and write the file whenever the text that is held back says that it is better."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    print(f"{len(tokens)} tokens, {sum(p.numel() for p in model.parameters())} weights", flush=True)
    best, begun = math.inf, time.process_time()
    for step in range(given.steps):
        rate = RATE * min(1, (step + 1) / 40) * (0.05 + 0.95 * (1 - step / given.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(len(training) - CONTEXT - 1, (BATCH,))
        x = torch.stack([training[i : i + CONTEXT] for i in at])
        y = torch.stack([training[i + 1 : i + CONTEXT + 1] for i in at])
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == given.steps:
            now = held_back_loss(model, held_back)
            spent = time.process_time() - begun
            print(f"{step + 1}: {loss:.3f}, held back {now:.3f}, {spent:.0f} s", flush=True)
            if now < best:
                best = now
                write(model, tokenizer, given.out)


if __name__ == "__main__":
    main()
