"""What small KV costs beside llama.cpp's: the same model, text and windows.

    python bench/kv_quality_against_llamacpp.py MODEL.gguf --text FILE --llama-bin DIR --out R.json

Each program is compared with itself with KV in f16: KL divergence, likeliest token, and the
logarithm of the perplexities' ratio, which is what KV costs. llama.cpp turns keys and values by
Hadamard matrices before it rounds them to q4_0; beside that the same without. What is in R.json
already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, peer_version
from quality_against_llamacpp import LINES, PERCENT

OURS = ("q8_0", "q8_0:int4", "int4")
THEIRS = (("q8_0", True), ("q4_0", True), ("q4_0", False))
TOLD = ("perplexity", "log_ratio", "kl", "same_top")


def their_command(args: argparse.Namespace, kv_type: str) -> list[Any]:
    command = [args.llama_bin / "llama-perplexity", "-m", args.model, "-f", args.text]
    command += ["-c", args.context, "--chunks", args.chunks, "-t", args.threads]
    # At this verbosity it says whether it turns keys and values.
    return [*command, "-fa", "on", "-ctk", kv_type, "-ctv", kv_type, "-lv", 4]


def said_by(command: list[Any], **more: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **more}
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def theirs(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What llama-perplexity says of its types against its own f16."""
    out: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        base = ["--kl-divergence-base", Path(scratch) / "base"]
        said_by([*their_command(args, "f16"), *base])
        for kv_type, turned in THEIRS:
            env = {} if turned else {"LLAMA_ATTN_ROT_DISABLE": "1"}
            said = said_by([*their_command(args, kv_type), *base, "--kl-divergence"], **env)
            if f"attn_rot_k = {int(turned)}" not in said:
                raise SystemExit("this llama.cpp does not say whether it turns keys and values")
            row = {}
            for name in TOLD:
                match = re.search(LINES[name], said)
                if match is None:
                    raise SystemExit(f"llama-perplexity did not say {name}")
                scale = 0.01 if name in PERCENT else 1
                row |= {name: scale * float(match[1]), f"{name}_stderr": scale * float(match[2])}
            out[kv_type if turned else f"{kv_type} not turned"] = row
            print("llama.cpp", kv_type, turned, json.dumps(row), flush=True)
    return out


def ours(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What `strata quality` says of ours against f16."""
    out = {}
    for kv_type in OURS:
        command = [sys.executable, "-m", "strata", "quality", args.model, "--base", args.model]
        command += ["--kv-type", kv_type, "--base-kv-type", "f16", "--text", args.text, "--json"]
        command += ["-c", args.context, "--chunks", args.chunks, "-t", args.threads, "-q"]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True)
        (found,) = json.loads(done.stdout)["models"]
        out[kv_type] = {name: found[name]["value"] for name in TOLD}
        for name in TOLD[1:]:
            out[kv_type] |= {f"{name}_{end}": found[name][end] for end in ("low", "high")}
        print("strata", kv_type, json.dumps(out[kv_type]), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    result |= {"machine": describe(), "model": args.model.name}
    result |= {"llama_cpp": peer_version(args.llama_bin), "text": args.text.name}
    result |= {"context": args.context, "chunks": args.chunks}
    for side, measure in (("strata", ours), ("llama.cpp", theirs)):
        if side not in result:
            result[side] = measure(args)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
