"""Decoding behind a long context by type of KV, beside llama.cpp with its own.

    taskset -c 0,1 python bench/kv_decode.py MODEL.gguf --llama-bin DIR --out R.json [--depth 8000]

Every side computes the same drawn prompt once and keeps its KV. Each round has every side decode
--tokens behind it, the next side first each time, while the others rest; ratios are formed round by
round, so that a change of the machine's pace changes all sides. llama.cpp's server keeps q4_0 with
its own rotation and flash attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe, peer_version
from strata import LLM, SamplingParams

OURS = ("f16", "q8_0", "int4")
THEIRS = ("f16", "q4_0")
PAIRS = (
    ("strata int4", "strata f16"),
    ("strata int4", "llama.cpp q4_0"),
    ("strata f16", "llama.cpp f16"),
    ("llama.cpp q4_0", "llama.cpp f16"),
)


class Ours:
    """A model with the KV of the prompt in memory."""

    def __init__(self, args: argparse.Namespace, ids: list[int], kv_type: str) -> None:
        self._ids, self._tokens = ids, args.tokens
        context = args.depth + args.tokens + 64
        self._llm = LLM(
            args.model, threads=args.threads, context=context, kv_type=kv_type, draft="off"
        )
        self.tokens_s()

    def tokens_s(self) -> float:
        params = SamplingParams(max_tokens=self._tokens + 1, ignore_eos=True, temperature=0)
        speed = self._llm.generate(self._ids, params).timings.decode_tok_s
        assert speed is not None
        return speed

    def close(self) -> None:
        self._llm.close()


class Theirs:
    """llama-server with one slot, which remembers the prompt."""

    def __init__(self, args: argparse.Namespace, ids: list[int], kv_type: str, port: int) -> None:
        self._ids, self._tokens = ids, args.tokens
        self._url = f"http://127.0.0.1:{port}"
        command: list[object] = [args.llama_bin / "llama-server", "-m", args.model, "-np", 1]
        command += ["-c", args.depth + args.tokens + 64, "-t", args.threads, "-fa", "on"]
        command += ["-ctk", kv_type, "-ctv", kv_type, "--port", port, "--no-webui"]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self._url}/health", timeout=5).read()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, "llama-server has ended"
                time.sleep(0.2)
        self.tokens_s()

    def tokens_s(self) -> float:
        body = {
            "prompt": self._ids,
            "n_predict": self._tokens,
            "cache_prompt": True,
            "ignore_eos": True,
            "temperature": 0,
        }
        asked = urllib.request.Request(
            f"{self._url}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        said = json.loads(urllib.request.urlopen(asked, timeout=3600).read())
        return float(said["timings"]["predicted_per_second"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def prepared(args: argparse.Namespace) -> dict[str, Ours | Theirs]:
    """All sides, with the prompt computed."""
    ids = np.random.default_rng(0).integers(1000, 30000, args.depth).tolist()
    sides: dict[str, Ours | Theirs] = {f"strata {t}": Ours(args, ids, t) for t in OURS}
    if args.llama_bin:
        for number, kv_type in enumerate(THEIRS):
            sides[f"llama.cpp {kv_type}"] = Theirs(args, ids, kv_type, args.port + number)
    return sides


def rounds(args: argparse.Namespace, sides: dict[str, Ours | Theirs]) -> list[dict[str, float]]:
    """Tokens a second of each side, in each round."""
    out, names = [], list(sides)
    for number in range(args.rounds):
        order = [*names[number % len(names) :], *names[: number % len(names)]]
        found = {name: sides[name].tokens_s() for name in order}
        out.append({name: found[name] for name in names})
    return out


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of each side, and ratios with their least and greatest."""
    out: dict[str, Any] = {side: statistics.median(r[side] for r in found) for side in found[0]}
    for side, other in PAIRS:
        if side in found[0] and other in found[0]:
            ratios = [r[side] / r[other] for r in found]
            out[f"{side} / {other}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bin", type=Path, help="without it only our sides are run")
    parser.add_argument("--depth", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8741)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def write(args: argparse.Namespace, found: list[dict[str, float]]) -> None:
    result = {"machine": describe(), "model": args.model.name}
    if args.llama_bin:
        result["llama_cpp"] = peer_version(args.llama_bin)
    result |= {"depth": args.depth, "tokens": args.tokens, "summary": summary(found)}
    args.out.write_text(json.dumps({**result, "rounds": found}, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


def main() -> None:
    args = arguments()
    sides = prepared(args)
    try:
        write(args, rounds(args, sides))
    finally:
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
