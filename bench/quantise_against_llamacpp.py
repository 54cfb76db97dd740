"""Our files beside llama-quantize's at the same or a larger size, judged by llama-perplexity.

Two models. `smollm2` is SmolLM2 turned into a true float model (`bench/float_model.py`). Its rows
of 576 have no block types of 256, so llama.cpp's mixes end at 4.8 bits for it: below, its side is
given types by --tensor-type, in the ways that a person would try, no file smaller than ours of that
size. (Q2_0, the only small type that it has for such rows, is meant for models that were trained in
it: what is below 4 bits shows little but that.) `small` is trained from scratch
(`tools/train_small_dense.py`) with rows of 256 and 768: each of llama.cpp's own mixes, and our best
file of at most that size.

Both sides have the same calibration text and the same importance matrix, which `strata imatrix`
wrote and llama-quantize reads (or llama-imatrix's, with --llama-imatrix). Files and judgements that
are in DIR already are not made again.

    python bench/quantise_against_llamacpp.py --tools DIR --text TEXT --test TEXT --work DIR
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe, peer_version

RESULTS = Path(__file__).parent / "results" / "quantise_against_llamacpp.json"
TRAIN = Path(__file__).resolve().parent.parent / "tools" / "train_small_dense.py"
MODELS = {
    "smollm2": "SmolLM2-135M, residual stream turned, head of its own: 162.8 M parameters, F16",
    "small": "4 layers of 256, trained from scratch (tools/train_small_dense.py), F16",
}


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
    "4.0 down": ("IQ4_NL", _types(_NL, _NL, attn=_NL, ffn_down="iq2_s")),
    "4.0 table": ("IQ4_NL", _types(_NL, "q2_0", attn=_NL, ffn_down="iq4_xs")),
    "3.5 ffn": ("IQ4_NL", _types("q2_0", "q2_0", attn=_NL, ffn_down="iq3_s")),
    "3.5 output": ("IQ4_NL", _types(_NL, "q2_0", attn=_NL, ffn_down="iq3_xxs", ffn_up="q2_0")),
    "3.0 ffn": ("Q2_0", _types("q2_0", "q2_0", attn=_NL, ffn_gate=_NL, ffn_down="iq2_s")),
    "3.0 output": ("Q2_0", _types(_NL, "q2_0", attn=_NL, ffn_down="iq2_xs")),
    "2.6 attention": ("Q2_0", _types("q2_0", "q2_0", attn=_NL, ffn_down="iq2_xs")),
    "2.6 output": ("Q2_0", _types(_NL, "q2_0", attn="q2_0", ffn_down="iq2_xs")),
}
MIXES = (
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K", "IQ3_XXS", "IQ3_XS", "Q3_K_S", "IQ3_M"),
    *("Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M"),
)
# Student's t for 95 %, two-sided, by degrees of freedom.
_T = {3: 3.18, 7: 2.36, 11: 2.20, 15: 2.13, 19: 2.09, 31: 2.04, 63: 2.00}


def run(*command: object, log: Path) -> float:
    """Seconds of a command, whose output goes to a file."""
    started = time.perf_counter()
    with log.open("wb") as out:
        done = subprocess.run([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {log}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - started


def judged(tools: Path, model: Path, base: Path, log: Path, threads: int) -> dict[str, Any]:
    """What llama-perplexity says of a file beside the base's logits; ``windows`` are the mean KL
    and the mean log ratio of perplexities in each."""
    # On a busy machine its last lines are lost at times.
    for _ in range(4):
        if log.exists() and "Mean    KLD:" in log.read_text():
            break
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
    return {
        "mean_kl": kl,
        "mean_kl_stderr": kl_error,
        "kl_99.9": number(r"99.9%   KLD")[0],
        "perplexity": ppl,
        "perplexity_stderr": ppl_error,
        "same_top": number("Same top p")[0],
        "windows": by_window(text),
    }


def by_window(text: str) -> dict[str, list[float]]:
    """What the means so far, which it prints after each window, say of each alone."""
    pm = r"(-?[\d.]+|nan|inf) ±\s*(?:[\d.]+|nan|inf)"
    lines = re.findall(rf"^\s*\d+\s+{pm}\s+{pm}\s+{pm}", text, re.M)
    means = np.array([(float(kl), float(ratio)) for _, ratio, kl in lines]).reshape(-1, 2)
    sums = means * np.arange(1, len(means) + 1)[:, None]
    alone = np.diff(sums, axis=0, prepend=np.zeros((1, 2)))
    return {"kl": alone[:, 0].round(5).tolist(), "log_ratio": alone[:, 1].round(5).tolist()}


def paired(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours less theirs, window by window: the mean, and half the interval of 95 %."""
    apart = np.array(ours) - np.array(theirs)
    times = next((t for n, t in sorted(_T.items()) if len(apart) - 1 <= n), 1.98)
    spread = times * float(apart.std(ddof=1)) / len(apart) ** 0.5
    return {"mean": float(apart.mean()), "interval": spread}


def beside(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Enter into a row of ours how far it is from the best of theirs that is meant for its size and
    no smaller."""
    others = [r for r in rows if r["by"] != "strata" and r["size"] == row["size"]]
    others = [r for r in others if r["bytes"] >= row["bytes"]]
    if row["by"] == "strata" and others:
        best = min(others, key=lambda r: r["mean_kl"])
        row["against"] = best["name"]
        for what in ("kl", "log_ratio"):
            row[f"{what}_apart"] = paired(row["windows"][what], best["windows"][what])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=Path, required=True, help="llama.cpp's programs")
    parser.add_argument("--text", type=Path, required=True, help="to calibrate with")
    parser.add_argument("--test", type=Path, required=True, help="to judge with")
    parser.add_argument("--work", type=Path, required=True, help="a folder for files")
    parser.add_argument("--model", choices=tuple(MODELS), default="smollm2")
    parser.add_argument("--bits", type=float, nargs="*", default=[2.6, 3.0, 3.5, 4.0, 4.5])
    parser.add_argument("--mixes", nargs="*", default=MIXES, help="llama.cpp's, of `small`")
    parser.add_argument("--chunks", type=int, default=20, help="windows to judge with")
    parser.add_argument("--windows", type=int, default=32, help="windows to calibrate with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-imatrix", action="store_true", help="llama.cpp's for its side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    args = parser.parse_args()
    w, t = args.work, args.threads
    w.mkdir(exist_ok=True)
    strata = [sys.executable, "-m", "strata"]
    source, base, ours_imatrix = w / "f16.gguf", w / "base.kld", w / "strata.imatrix.gguf"
    context = 512 if args.model == "smollm2" else 256
    if not source.exists():
        made_by = [Path(__file__).with_name("float_model.py"), source]
        made_by = made_by if args.model == "smollm2" else [TRAIN, args.text, source]
        run(sys.executable, *made_by, log=w / "make.log")
    if not base.exists():
        run(
            args.tools / "llama-perplexity",
            *("-m", source, "-f", args.test, "-c", context, "--chunks", args.chunks, "-t", t),
            *("--kl-divergence-base", base),
            log=w / "base.log",
        )
    if not ours_imatrix.exists():
        run(
            *(*strata, "imatrix", source, "--text", args.text, "--chunks", args.windows),
            *("-c", context, "-o", ours_imatrix, "-t", t),
            log=w / "imatrix.log",
        )
    theirs_imatrix = w / "llama.imatrix.gguf" if args.llama_imatrix else ours_imatrix
    if not theirs_imatrix.exists():
        run(
            args.tools / "llama-imatrix",
            *("-m", source, "-f", args.text, "-c", context, "--chunks", args.windows, "-t", t),
            *("-o", theirs_imatrix, "--process-output"),
            log=w / "llama-imatrix.log",
        )
    rows: list[dict[str, Any]] = []

    def made(path: Path, *command: object) -> None:
        """Write a file, unless an earlier run has."""
        if not path.exists():
            run(*command, log=path.with_suffix(".quantize.log"))

    def add(who: str, size: str, name: str, path: Path) -> None:
        found = judged(args.tools, path, base, path.with_name(f"{path.stem}.log"), t)
        row = {"by": who, "size": size, "name": name, "bytes": path.stat().st_size, **found}
        row["bits"] = 16 * row["bytes"] / source.stat().st_size
        rows.append(row)
        for mine in rows:
            beside(mine, rows)
        shown = {k: v for k, v in row.items() if k != "windows"}
        print(json.dumps(shown), flush=True)
        kept = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps({**kept, args.model: result()}, indent=1) + "\n")

    def result() -> dict[str, Any]:
        said = re.findall(r"Final estimate: PPL = ([\d.]+)", (w / "base.log").read_text())
        return {
            "machine": describe(),
            "llama_cpp": peer_version(args.tools),
            "model": MODELS[args.model],
            "texts": {"calibrated": args.text.name, "judged": args.test.name},
            "windows": {"calibrated": args.windows, "judged": args.chunks, "tokens": context},
            "base_perplexity": float(said[-1]),
            "importance_of_theirs": "llama-imatrix" if args.llama_imatrix else "strata imatrix",
            "rows": rows,
        }

    def theirs(size: str, name: str, kind: str, more: list[str]) -> Path:
        path = w / f"llama {name}.gguf"
        command = (args.tools / "llama-quantize", "--imatrix", theirs_imatrix, *more)
        made(path, *command, source, path, kind, t)
        add("llama.cpp", size, name, path)
        return path

    def ours(size: str, name: str, *wish: object) -> None:
        path = w / f"strata {name}.gguf"
        made(
            path,
            *(*strata, "quantize", source, path, *wish, "-t", t, "-c", context),
            *("--imatrix", ours_imatrix, "--calibration", args.text, "--chunks", args.windows),
            *("--write-recipe", path.with_name(f"{path.stem}.recipe")),
        )
        add("strata", size, name, path)

    if args.model == "small":
        for mix in args.mixes:
            file = theirs(mix, mix, mix, [])
            ours(mix, f"as {mix}", "--size", file.stat().st_size)
        return
    # Of each size one of theirs and ours, and only then what else of theirs there is.
    seen: set[str] = set()
    for name in sorted(THEIRS, key=lambda n: -float(n.split()[0])):
        size = name.split()[0]
        if float(size) in args.bits and size not in seen:
            seen.add(size)
            theirs(size, name, *THEIRS[name])
            ours(size, size, "--bpw", size)
    done = {row["name"] for row in rows}
    for name in sorted(THEIRS, key=lambda n: -float(n.split()[0])):
        if float(name.split()[0]) in args.bits and name not in done:
            theirs(name.split()[0], name, *THEIRS[name])


if __name__ == "__main__":
    main()
