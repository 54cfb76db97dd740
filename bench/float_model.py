"""SmolLM2 as a true float model: its residual stream turned by a random orthogonal matrix.

Its file is on a grid of four bits, on which every four-bit test is vacuous. Norms' gains go into
the matrices behind them, the stream is turned, and all that reads or writes it with it: logits
stay, and no weight is on a grid any more. The head gets a table of its own, because the gain of
the last norm is only in it: 163 M parameters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strata.formats import open_model
from strata.formats.gguf import stored_values
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.hub.references import resolve
from strata.quant import by_name, dequantize
from strata.quant.encode import quantize

Floats = NDArray[np.float32]


def turned(path: Path, seed: int = 1) -> tuple[dict[str, object], dict[str, Floats]]:
    """Metadata and float tensors of the turned model."""
    with open_model(path) as file:
        values: dict[str, object] = dict(stored_values(file.files[0]))
        t = {n: dequantize(i.type, file.read(n), i.shape) for n, i in file.tensors.items()}
    width = t["token_embd.weight"].shape[1]
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    q = (q * np.sign(np.diag(r))).astype(np.float64)

    def reads(name: str, gain: str) -> None:
        t[name] = (t[name].astype(np.float64) * t[gain] @ q).astype(np.float32)

    def writes(name: str) -> None:
        t[name] = (q.T @ t[name].astype(np.float64)).astype(np.float32)

    t["output.weight"] = t["token_embd.weight"]
    reads("output.weight", "output_norm.weight")
    t["token_embd.weight"] = (t["token_embd.weight"].astype(np.float64) @ q).astype(np.float32)
    for layer in range(sum(name.endswith("attn_norm.weight") for name in t)):
        at = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v"):
            reads(f"{at}{name}.weight", f"{at}attn_norm.weight")
        for name in ("ffn_gate", "ffn_up"):
            reads(f"{at}{name}.weight", f"{at}ffn_norm.weight")
        for name in ("attn_output", "ffn_down"):
            writes(f"{at}{name}.weight")
        for name in ("attn_norm", "ffn_norm"):
            t[f"{at}{name}.weight"] = np.ones(width, np.float32)
    t["output_norm.weight"] = np.ones(width, np.float32)
    return values, t


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--type", default="F16", choices=("F16", "F32"))
    args = parser.parse_args()
    values, tensors = turned(resolve(args.model))
    type, plain = by_name(args.type), by_name("F32")
    values["general.file_type"] = np.uint32(args.type == "F16")
    sources = [
        TensorSource.of(n, x.shape, k := type if x.ndim > 1 else plain, quantize(k, x))
        for n, x in tensors.items()
    ]
    write_gguf(args.out, values, sources)


if __name__ == "__main__":
    main()
