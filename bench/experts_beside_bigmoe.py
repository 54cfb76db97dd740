"""Decoding a mixture of which most lies on the disk: Strata beside BigMoeOnEdge, in turns.

    python bench/experts_beside_bigmoe.py MODEL.gguf BMOE_CLI [--cache MB] [--group MB] [--pairs N]
        [--tokens N] [--out FILE]

MODEL is what `strata synth` writes of a mixture (random weights, routers that choose nearly all
experts alike); BMOE_CLI is BigMoeOnEdge's program, built outside of this tree. Both run in a
control group of the same size, with an expert cache of the same size (Strata's Plan is given as
many slots as that is), on the same cores, the same prompt, greedy, as many tokens; the page cache
is dropped before each run. BigMoeOnEdge runs with its own best settings (direct reads, 4 lanes,
dense weights in memory of its own), once serial and once with its overlap of reading and computing.
Its speed is the one that it says itself, of tokens after the prompt; ours that of sweeps that
decode. Sixteen sequences together, which it cannot do, run last. Needs root and control groups.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from cgroups import group
from machine import describe

CHILD = """
import json, sys
from dataclasses import replace
from strata import LLM, SamplingParams
from strata.plan import Workload
path, budget, cache, parallel, answer, text = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
work = Workload(prompt_tokens=32, answer_tokens=answer)
how = dict(context=256, parallel=parallel, workload=work, draft="off")
with LLM(path, memory=budget, **how) as llm:
    plan, slot = llm.plan, llm.runtime.slot_bytes
slots = cache // slot
assert slots <= plan.expert_slots, (slots, plan.expert_slots)
plan = replace(plan, expert_slots=slots, expert_sure=min(plan.expert_sure, slots // 4))
with LLM(path, plan=plan, draft="off") as llm:
    params = SamplingParams(max_tokens=answer, ignore_eos=True, temperature=0)
    llm.generate([f"{text} {n}" for n in range(parallel)], params)
    e = llm.explain()
    print(json.dumps({"slots": slots, "slot_bytes": slot, "tok_s": e.decode.tokens_s,
                      "hits": e.decode.expert_hits, "misses": e.decode.expert_misses,
                      "reading_bytes_s": e.decode.reading_bytes_s}))
"""
TEXT = "The first game of the season was played in the city and the team"


def in_group(size: int, command: list[str], wait_s: float) -> tuple[int, str]:
    """Exit status and all that was said."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with group(size) as made:
        try:
            done = made.run(command, wait_s)
        except subprocess.TimeoutExpired:
            return -1, f"longer than {wait_s:.0f} s"
    return done.returncode, done.stdout + done.stderr


def ours(given: argparse.Namespace, parallel: int) -> dict[str, Any]:
    """A run of ours."""
    budget = given.group * 10**6
    sizes = [str(n) for n in (budget, given.cache << 20, parallel, given.tokens)]
    command = [sys.executable, "-c", CHILD, str(given.model), *sizes, TEXT]
    code, said = in_group(budget, command, given.wait)
    if code != 0:
        return {"exit": code, "error": said.strip()[-300:]}
    return {"exit": 0, **json.loads(said.strip().splitlines()[-1])}


def theirs(given: argparse.Namespace, *more: str) -> dict[str, Any]:
    """A run of BigMoeOnEdge."""
    command = [str(given.bmoe), "-m", str(given.model), "-p", TEXT, "-n", str(given.tokens)]
    command += ["-t", str(os.cpu_count()), "-c", "256", "--temp", "0", "--moe-stream"]
    command += ["--cache-mb", str(given.cache), "--io-threads", "4", *more]
    code, said = in_group(given.group * 10**6, command, given.wait)
    found = re.search(given.pattern, said)
    if code != 0 or found is None:
        return {"exit": code, "error": said.strip()[-300:]}
    return {"exit": 0, "tok_s": float(found[1])}


def main() -> None:
    """Run the pairs in turns, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("bmoe", type=Path)
    parser.add_argument("--cache", type=int, default=1500, help="MiB of experts that are kept")
    parser.add_argument("--group", type=int, default=4000, help="MB of the control group")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--wait", type=float, default=300.0)
    parser.add_argument("--pattern", default=r"([0-9.]+) tok/s")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": describe(), "model": given.model.name}
    found |= {"cache_mib": given.cache, "group_mb": given.group, "tokens": given.tokens}
    runs: dict[str, list[Any]] = {"ours": [], "theirs": [], "theirs_overlap": [], "sixteen": []}
    for _ in range(given.pairs):
        runs["ours"].append(ours(given, 1))
        runs["theirs"].append(theirs(given))
        runs["theirs_overlap"].append(theirs(given, "--overlap"))
    runs["sixteen"].append(ours(given, 16))
    found["runs"] = runs
    speeds = {
        name: statistics.median(r["tok_s"] for r in some if r["exit"] == 0)
        for name, some in runs.items()
        if any(r["exit"] == 0 for r in some)
    }
    found["median_tok_s"] = speeds
    others = [speeds[name] for name in ("theirs", "theirs_overlap") if name in speeds]
    if others and "ours" in speeds:
        found["times_theirs"] = speeds["ours"] / max(others)
    if "sixteen" in speeds and "ours" in speeds:
        found["sixteen_to_one"] = speeds["sixteen"] / speeds["ours"]
    print(json.dumps(found, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
