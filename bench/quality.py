"""What native kernels cost in accuracy, format by format: perplexity, error of log-probabilities.

A model's weights are decoded and encoded anew in each block format; where a row is no whole number
of blocks (SmolLM2 has rows of 576, K-quants take 256) a matrix gets what llama.cpp falls back to,
and embeddings and the head are Q8_0 in every file of blocks, as in the model's own file. The same
file then goes to the reference backend, to the cpu backend with each instruction set, and to
llama.cpp's `llama-perplexity`; ``rms`` and ``median`` are errors of a token's log-probability
against the reference. A row is good if the cpu backend's perplexity is within half a per cent of
the reference's and no greater than llama.cpp's, or greater by less than two standard errors of the
mean over the same tokens (``sigmas``): rounding activations to int8 is noise in both, and of noise
of the same size one of two is greater by chance.

`python bench/quality.py MODEL.gguf --text wiki.test.txt --llama-bin DIR --json out.json`
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe, peer_version
from strata import LLM
from strata.backends.cpu.host import available_isas
from strata.formats import ModelFile, open_model
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.quant import by_name, dequantize
from strata.quant.encode import quantize

FORMATS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
)
# llama.cpp's choices for rows that are no whole number of blocks of 256.
FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
FLOATS = ("F32", "F16", "BF16")
EMBEDDINGS = ("token_embd.weight", "output.weight")
LARGEST_LOSS = 0.005
NOISE = 2.0


def requantised(source: ModelFile, name: str, path: Path) -> dict[str, int]:
    """Write the model with its matrices in a format; returns how many matrices got which."""
    used: dict[str, int] = {}
    tensors = []
    for info in source.tensors.values():
        kind = by_name("F32")
        if len(info.shape) == 2:
            chosen = name
            if info.name in EMBEDDINGS and name not in FLOATS:
                chosen = "Q8_0"
            if info.shape[-1] % by_name(chosen).elements:
                chosen = FALLBACK[chosen]
            kind = by_name(chosen)
            used[chosen] = used.get(chosen, 0) + 1

        def chunks(info: Any = info, kind: Any = kind) -> Iterable[NDArray[np.uint8]]:
            values = dequantize(info.type, source.read(info.name), info.shape)
            yield quantize(kind, values).reshape(-1)

        tensors.append(TensorSource(info.name, info.shape, kind, chunks))
    metadata = {k: v for k, v in source.metadata.items() if k != "general.file_type"}
    write_gguf(path, metadata, tensors)
    return used


def ours(
    path: Path, text: str, context: int, chunks: int, *, backend: str, isa: str | None, threads: int
) -> tuple[NDArray[np.float64], float]:
    """Log-probabilities of the second half of each window, and seconds."""
    if isa is not None:
        os.environ["STRATA_ISA"] = isa
    parts = []
    with LLM(path, backend=backend, threads=threads, context=context) as llm:
        tokens = llm.tokenize(text, add_special=True)
        if len(tokens) < context * chunks:
            raise SystemExit(f"the text has {len(tokens)} tokens: too few for {chunks} windows")
        start = time.perf_counter()
        for i in range(chunks):
            window = tokens[i * context : (i + 1) * context]
            if llm.tokenizer.add_bos and llm.tokenizer.bos_id is not None:
                window[0] = llm.tokenizer.bos_id
            parts.append(llm.engine.logprobs(window, context // 2))
    return np.concatenate(parts), time.perf_counter() - start


def peers(
    tool: Path, path: Path, text: Path, context: int, chunks: int, threads: int
) -> tuple[NDArray[np.float64], float, float]:
    """The same of llama-perplexity, its perplexity and seconds.

    Log-probabilities are from the file that it saves, in 16 bits over a range of at most 16 nats
    (half a step is 1e-4); what it cut off at the range's end comes back as NaN.
    """
    saved = path.with_suffix(".logits")
    command = [tool, "-m", path, "-f", text, "-c", context, "--chunks", chunks, "-t", threads]
    command += ["--save-all-logits", saved]
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{tool} failed: {done.stderr[-2000:]}")
    raw = np.memmap(saved, np.uint8, "r")
    assert bytes(raw[:8]) == b"_logits_"
    size, vocabulary, count = raw[8:20].view(np.int32)
    assert (size, count) == (context, chunks)
    tokens = raw[20 : 20 + 4 * size * count].view(np.int32).reshape(count, size)
    rows = raw[20 + 4 * tokens.size :].view(np.uint16).reshape(count, size - 1 - size // 2, -1)
    head = np.ascontiguousarray(rows[..., :4]).view(np.float32).astype(np.float64)
    targets = tokens[:, size // 2 + 1 :].astype(np.int64)[..., None]
    level = np.take_along_axis(rows[..., 4 : 4 + vocabulary], targets, axis=2)[..., 0]
    result = np.where(level > 0, level * head[..., 0] + head[..., 1], np.nan).reshape(-1)
    saved.unlink()
    printed = re.findall(r"PPL = ([0-9.]+)", done.stdout + done.stderr)
    return result, float(printed[-1]), seconds


def perplexity_of(logprobs: NDArray[np.float64]) -> float:
    return float(np.exp(-logprobs.mean()))


def compare(
    found: NDArray[np.float64], reference: NDArray[np.float64], perplexity: float | None = None
) -> dict[str, float]:
    """Perplexity, its ratio to the reference's with the standard error of paired tokens, and the
    errors of the tokens that were not cut off."""
    apart = (reference - found)[np.isfinite(found)]
    if perplexity is None:
        perplexity = perplexity_of(found)
    return {
        "perplexity": perplexity,
        "ratio": perplexity / perplexity_of(reference),
        "ratio_stderr": float(apart.std() / np.sqrt(len(apart) - 1)),
        "rms": float(np.sqrt((apart**2).mean())),
        "median": float(np.median(np.abs(apart))),
    }


def sigmas(found: NDArray[np.float64], peer: NDArray[np.float64]) -> float:
    """How many standard errors the mean loss is above the peer's, over the tokens of both."""
    apart = (peer - found)[np.isfinite(peer)]
    return float(apart.mean() / (apart.std() / np.sqrt(len(apart) - 1)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    text = Path(args.text).read_text(encoding="utf-8").removesuffix("\n")
    results = []
    tool = Path(args.llama_bin) / "llama-perplexity" if args.llama_bin else None
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch, open_model(args.model) as source:
        for name in args.formats.split(","):
            path = Path(scratch) / f"{name}.gguf"
            row: dict[str, Any] = {"format": name, "matrices": requantised(source, name, path)}
            row["file_bytes"] = path.stat().st_size
            size = (args.context, args.chunks)
            reference, seconds = ours(
                path, text, *size, backend="reference", isa=None, threads=args.threads
            )
            row["reference"] = {"perplexity": perplexity_of(reference), "seconds": seconds}
            peer: NDArray[np.float64] | None = None
            if tool is not None:
                peer, printed, seconds = peers(tool, path, Path(args.text), *size, args.threads)
                row["llama_cpp"] = {
                    **compare(peer, reference, printed),
                    "cut_off": int(np.isnan(peer).sum()),
                    "seconds": seconds,
                }
            row["cpu"] = {}
            for isa in args.isas.split(","):
                found, seconds = ours(
                    path, text, *size, backend="cpu", isa=isa, threads=args.threads
                )
                row["cpu"][isa] = {**compare(found, reference), "seconds": seconds}
                if peer is not None:
                    row["cpu"][isa]["sigmas"] = sigmas(found, peer)
            row["good"] = {isa: good(cpu, row.get("llama_cpp")) for isa, cpu in row["cpu"].items()}
            results.append(row)
            show(row)
            path.unlink()
    return {
        "machine": describe(),
        "llama_cpp": peer_version(Path(args.llama_bin)) if args.llama_bin else None,
        "model": Path(args.model).name,
        "context": args.context,
        "chunks": args.chunks,
        "threads": args.threads,
        "results": results,
    }


def good(cpu: dict[str, float], peer: dict[str, float] | None) -> bool:
    """Close to the reference, and no worse than llama.cpp."""
    close = abs(cpu["ratio"] - 1) <= LARGEST_LOSS
    return close and (
        peer is None or cpu["perplexity"] <= peer["perplexity"] or cpu["sigmas"] < NOISE
    )


def show(row: dict[str, Any]) -> None:
    print(f"{row['format']:7s} reference {row['reference']['perplexity']:9.4f}", end="")
    others = {**row["cpu"], **({"llama.cpp": row["llama_cpp"]} if "llama_cpp" in row else {})}
    for name, other in others.items():
        loss = 100 * (other["ratio"] - 1)
        print(f" | {name} {other['perplexity']:9.4f} {loss:+6.3f} % rms {other['rms']:.4f}", end="")
        if "sigmas" in other:
            print(f" {other['sigmas']:+.1f} sigma", end="")
    print(f" | {'good' if all(row['good'].values()) else 'WORSE'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--llama-bin", help="the directory that holds llama-perplexity")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--isas", default=",".join(i for i in available_isas() if i != "scalar"))
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", help="where the files are written (default: the system's)")
    parser.add_argument("--json", help="write everything there")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
