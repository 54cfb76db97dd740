"""Guessing tokens ahead beside llama.cpp's tools for it, on the same texts and files, resident.

    python bench/drafts_against_llamacpp.py MODEL.gguf --tools FOLDER --draft SMALLER.gguf
        [--rounds N] [--tokens N] [--threads N] [--out FILE]

Greedy answers to prompts of ``bench/speculation.py``: a text to repeat, code to edit, prose. Three
ways on each side: plainly (``llama-completion``), with words looked up in the text itself
(``llama-lookup``, `--draft ngram`), and with a draft model (``llama-speculative-simple``,
`--draft-model`). FOLDER has these tools. Tokens a second are those of the answer, from its first
token on; the prompt is not counted, and neither is loading. Sides take turns, round after round;
``tok_s`` has all rounds. ``gain`` is the median over that of answering plainly, on each side.
SMALLER.gguf has the model's vocabulary: `strata quantize MODEL SMALLER.gguf --type Q2_K`, say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, peer_version
from speculation import prompt
from strata import LLM, SamplingParams

KINDS = ("repeat", "code", "prose")
LOOKED_UP = 15
"""Tokens that llama.cpp looks up at once, at most; with a draft model as many as it does itself."""
CONTEXT = 1024
_SPEEDS = {
    "plain": re.compile(r"\beval time =.*?/\s*(\d+) runs.*?([\d.]+) tokens per second"),
    "lookup": re.compile(r"decoded\s+(\d+) tokens in\s+[\d.]+ seconds, speed:\s+([\d.]+) t/s"),
}
_COUNTS = re.compile(r"(n_drafted|n_accept)\s*=\s*(\d+)")


def ours(model: Path, way: str, draft: Path, texts: list[list[int]], args: Any) -> list[Any]:
    """Strata's answers to each prompt."""
    options: dict[str, Any] = {"draft": {"plain": "off", "lookup": "ngram"}.get(way, "ngram")}
    if way == "draft":
        options["draft_model"] = str(draft)
    found = []
    with LLM(model, context=CONTEXT, parallel=1, threads=args.threads, **options) as llm:
        for ids in texts:
            params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
            before = llm.engine.status()
            said = llm.generate(ids, params)
            after = llm.engine.status()
            found.append(
                {
                    "tok_s": said.timings.decode_tok_s,
                    "guessed": after.draft_tokens - before.draft_tokens,
                    "right": after.draft_tokens_kept - before.draft_tokens_kept,
                }
            )
    return found


def theirs(model: Path, way: str, draft: Path, text: Path, args: Any) -> dict[str, Any]:
    """llama.cpp's answer to the prompt in a file."""
    tool = {"plain": "completion", "lookup": "lookup", "draft": "speculative-simple"}[way]
    command = [args.tools / f"llama-{tool}", "-m", model, "-f", text, "-n", str(args.tokens)]
    command += ["--temp", "0", "-t", str(args.threads), "-c", str(CONTEXT), "--ignore-eos"]
    if way == "plain":
        command += ["-no-cnv", "--perf"]
    elif way == "lookup":
        command += ["--spec-draft-n-max", str(LOOKED_UP)]
    else:
        command += ["--spec-type", "draft-simple", "-md", draft]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=300,
        env={**os.environ, "LD_LIBRARY_PATH": str(args.libraries or args.tools)},
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    match = _SPEEDS["plain" if way == "plain" else "lookup"].search(said)
    if match is None:
        raise SystemExit(f"{tool} told no speed:\n{said[-2000:]}")
    counts = dict(_COUNTS.findall(said))
    return {
        "tok_s": float(match[2]),
        "guessed": int(counts.get("n_drafted", 0)),
        "right": int(counts.get("n_accept", 0)),
    }


def table(rounds: dict[tuple[str, str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row a text and way."""
    rows = []
    for kind in KINDS:
        plain = {
            side: statistics.median(r["tok_s"] for r in rounds[side, kind, "plain"])
            for side in ("strata", "llama.cpp")
        }
        for way in ("plain", "lookup", "draft"):
            row: dict[str, Any] = {"text": kind, "way": way}
            for side in ("strata", "llama.cpp"):
                found = rounds[side, kind, way]
                speeds = [round(r["tok_s"], 2) for r in found]
                row[side] = {
                    "tok_s": speeds,
                    "median": statistics.median(speeds),
                    "gain": round(statistics.median(speeds) / plain[side], 3),
                    "guessed": found[-1]["guessed"],
                    "right": found[-1]["right"],
                }
            row["ratio"] = round(row["strata"]["median"] / row["llama.cpp"]["median"], 3)
            rows.append(row)
    return rows


def main() -> None:
    """Answer all prompts in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--libraries", type=Path, help="of these tools, where not beside them")
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with LLM(args.model, context=CONTEXT, draft="off") as llm:
        texts = [prompt(llm, kind, 3) for kind in KINDS]
        written = [llm.tokenizer.decode(ids, skip_special=False) for ids in texts]
    rounds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{kind}.txt" for kind in KINDS]
        for file, text in zip(files, written, strict=True):
            file.write_text(text)
        for number in range(args.rounds):
            for way in ("plain", "lookup", "draft"):
                sides = ["strata", "llama.cpp"]
                for side in sides if number % 2 == 0 else reversed(sides):
                    if side == "strata":
                        found = ours(args.model, way, args.draft, texts, args)
                    else:
                        found = [theirs(args.model, way, args.draft, f, args) for f in files]
                    for kind, each in zip(KINDS, found, strict=True):
                        rounds.setdefault((side, kind, way), []).append(each)
                        print(number, way, side, kind, each, flush=True)
    told = {
        "machine": describe(),
        "llama_cpp": peer_version(args.libraries or args.tools),
        "model": args.model.name,
        "draft": args.draft.name,
        "tokens": args.tokens,
        "rows": table(rounds),
    }
    if args.out:
        args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
