"""Our files beside llama-quantize's at the same or a larger size, judged by llama-perplexity.

The model is SmolLM2 turned into a true float model (`bench/float_model.py`). Both sides have the
same calibration text and the same importance matrix, which `strata imatrix` wrote and
llama-quantize reads (or llama-imatrix's, with --llama-imatrix). Rows of 576 have no block types of
256, so llama.cpp's mixes end at 4.8 bits for this model: below, its side is given types by
--tensor-type, in the ways that a person would try, no file smaller than ours of that size.

    python bench/quantise_against_llamacpp.py --tools DIR --text TEXT --test TEXT --work DIR
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "quantise_against_llamacpp.json"


def _types(output: str, table: str, **kinds: str) -> list[str]:
    """Arguments for types of all matrices: the head's, the table's, and those of layers."""
    found = ["--output-tensor-type", output, "--token-embedding-type", table]
    for kind, type in kinds.items():
        found += ["--tensor-type", f"{kind}={type}"]
    return found


_NL = "iq4_nl"
# What llama-quantize is asked for: a base type, and types of tensors. Of each size the ways that a
# person would try: more bits for the head, for attention, or for the feed-forward layers.
THEIRS: dict[str, tuple[str, list[str]]] = {
    "4.5 IQ4_NL": ("IQ4_NL", ["--pure"]),
    "4.5 Q4_0": ("Q4_0", ["--pure"]),
    "4.5 IQ4_XS": ("IQ4_XS", ["--output-tensor-type", "q5_0", "--token-embedding-type", "q4_0"]),
    "4.0 table": ("IQ4_NL", _types(_NL, "q2_0", attn=_NL, ffn_down="iq4_xs")),
    "4.0 down": ("IQ4_NL", _types(_NL, _NL, attn=_NL, ffn_down="iq2_s")),
    "3.5 output": ("IQ4_NL", _types(_NL, "q2_0", attn=_NL, ffn_down="iq3_xxs", ffn_up="q2_0")),
    "3.5 ffn": ("IQ4_NL", _types("q2_0", "q2_0", attn=_NL, ffn_down="iq3_s")),
    "3.0 output": ("Q2_0", _types(_NL, "q2_0", attn=_NL, ffn_down="iq2_xs")),
    "3.0 ffn": ("Q2_0", _types("q2_0", "q2_0", attn=_NL, ffn_gate=_NL, ffn_down="iq2_s")),
    "2.6 output": ("Q2_0", _types(_NL, "q2_0", attn="q2_0", ffn_down="iq2_xs")),
    "2.6 attention": ("Q2_0", _types("q2_0", "q2_0", attn=_NL, ffn_down="iq2_xs")),
}


def run(*command: object, log: Path) -> float:
    """Seconds of a command, whose output goes to a file."""
    started = time.perf_counter()
    with log.open("wb") as out:
        done = subprocess.run([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {log}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - started


def judged(tools: Path, model: Path, base: Path, log: Path, threads: int) -> dict[str, float]:
    """What llama-perplexity says of a file beside the base's logits."""
    run(
        tools / "llama-perplexity",
        *("-m", model, "--kl-divergence-base", base, "--kl-divergence", "-t", threads),
        log=log,
    )
    text = log.read_text()

    def number(name: str) -> tuple[float, float]:
        found = re.search(rf"{name}\s*:\s*(-?[\d.]+)(?:\s*±\s*([\d.]+))?", text)
        if not found:
            sys.exit(f"{log} has no {name}")
        return float(found[1]), float(found[2] or 0)

    kl, kl_error = number("Mean    KLD")
    ppl, ppl_error = number(r"Mean PPL\(Q\)")
    top, _ = number("Same top p")
    return {
        "mean_kl": kl,
        "mean_kl_stderr": kl_error,
        "kl_99.9": number(r"99.9%   KLD")[0],
        "perplexity": ppl,
        "perplexity_stderr": ppl_error,
        "same_top": top,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=Path, required=True, help="llama.cpp's programs")
    parser.add_argument("--text", type=Path, required=True, help="to calibrate with")
    parser.add_argument("--test", type=Path, required=True, help="to judge with")
    parser.add_argument("--work", type=Path, required=True, help="a folder for files")
    parser.add_argument("--bits", type=float, nargs="*", default=[2.6, 3.0, 3.5, 4.0, 4.5])
    parser.add_argument("--chunks", type=int, default=20, help="windows to judge with")
    parser.add_argument("--windows", type=int, default=32, help="windows to calibrate with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-imatrix", action="store_true", help="llama.cpp's for its side")
    args = parser.parse_args()
    w, t = args.work, args.threads
    w.mkdir(exist_ok=True)
    strata = [sys.executable, "-m", "strata"]
    source, base, ours_imatrix = w / "f16.gguf", w / "base.kld", w / "strata.imatrix.gguf"
    if not source.exists():
        run(sys.executable, Path(__file__).with_name("float_model.py"), source, log=w / "make.log")
    if not base.exists():
        run(
            args.tools / "llama-perplexity",
            *("-m", source, "-f", args.test, "-c", 512, "--chunks", args.chunks, "-t", t),
            *("--kl-divergence-base", base),
            log=w / "base.log",
        )
    if not ours_imatrix.exists():
        run(
            *(*strata, "imatrix", source, "--text", args.text, "--chunks", args.windows),
            *("-o", ours_imatrix, "-t", t),
            log=w / "imatrix.log",
        )
    theirs_imatrix = w / "llama.imatrix.gguf" if args.llama_imatrix else ours_imatrix
    if not theirs_imatrix.exists():
        run(
            args.tools / "llama-imatrix",
            *("-m", source, "-f", args.text, "-c", 512, "--chunks", args.windows, "-t", t),
            *("-o", theirs_imatrix, "--process-output"),
            log=w / "llama-imatrix.log",
        )
    parameters = 162_826_560
    rows: list[dict[str, Any]] = []

    def made(path: Path, *command: object) -> float | None:
        """Seconds of what writes a file; None for one that an earlier run has left."""
        if path.exists():
            return None
        return run(*command, log=path.with_suffix(".quantize.log"))

    def add(who: str, name: str, path: Path, seconds: float | None) -> None:
        bits = 8 * path.stat().st_size / parameters
        found = judged(args.tools, path, base, path.with_suffix(".log"), t)
        row = {"by": who, "name": name, "bytes": path.stat().st_size, "bits": bits, **found}
        rows.append({**row, "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)
        RESULTS.write_text(json.dumps(result(), indent=1) + "\n")

    def result() -> dict[str, Any]:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return {
            "commit": commit.stdout.strip(),
            "machine": {"processor": platform.processor(), "threads": t},
            "model": "SmolLM2-135M, residual stream turned, head of its own: 162.8 M parameters",
            "windows": {"calibrated": args.windows, "judged": args.chunks, "tokens": 512},
            "base_perplexity": float(
                re.findall(r"Final estimate: PPL = ([\d.]+)", (w / "base.log").read_text())[-1]
            ),
            "importance_of_theirs": "llama-imatrix" if args.llama_imatrix else "strata imatrix",
            "rows": rows,
        }

    for name, (kind, more) in THEIRS.items():
        if float(name.split()[0]) not in args.bits:
            continue
        path = w / f"llama {name}.gguf"
        seconds = made(
            path,
            args.tools / "llama-quantize",
            *("--imatrix", theirs_imatrix, *more, source, path, kind, t),
        )
        add("llama.cpp", name, path, seconds)
    for bits in args.bits:
        path = w / f"strata {bits}.gguf"
        seconds = made(
            path,
            *(*strata, "quantize", source, path, "--bpw", bits, "-t", t),
            *("--imatrix", ours_imatrix, "--calibration", args.text, "--chunks", args.windows),
            *("--write-recipe", path.with_name(f"{path.stem}.recipe")),
        )
        add("strata", f"{bits}", path, seconds)


if __name__ == "__main__":
    main()
