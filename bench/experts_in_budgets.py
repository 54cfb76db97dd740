"""Mixtures whose experts do not fit, in control groups of exactly the budget: killed or not, peaks
and speeds against the Plan, hits against the simulator, and llama.cpp with mmap in the same group.

    python bench/experts_in_budgets.py FOLDER [--llama-bench PROGRAM] [--build] [--discard]
        [--only TEXT] [--short] [--out FILE]

FOLDER holds what `strata synth` writes, by the names of `file_name`: random weights, whose routers
choose nearly all experts alike. That is the worst case for any cache. With --build a file that is
not there is written when its turn comes (up to 29 GB, some minutes each), and with --discard
deleted after its last pair, so that there is one at a time. A FILE that is there is gone on with:
pairs that it has are not run again; --only takes those whose model's name has the text in it.
--short has some layers alone of each model, in gigabytes less. Needs root and control groups. Each
pair runs one sequence and sixteen; tok/s are those of sweeps that decode, and of a prompt of 512.
The page cache is dropped before each run; llama.cpp has its weights as they are in the file
(--repack 0), since a copy of them would not fit. A disk has its own speed: bytes a second from it
are told beside the measured bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from cgroups import group
from machine import describe

# Shape and type, layers (0: all), and budgets in MB.
PAIRS = [
    ("qwen3-30b-a3b:Q4_K_M", 0, (2000, 4000, 8000)),
    ("gpt-oss-20b:MXFP4", 0, (2000, 6000)),
    ("qwen3.6-35b-a3b:Q4_K_M", 0, (3000, 8000)),
    ("lfm2-8b-a1b:Q4_K_M", 0, (1000, 2000)),
    ("mixtral-8x7b:Q4_K_M", 0, (4000, 8000)),
    ("gpt-oss-120b:MXFP4", 12, (4000, 8000)),
    ("glm-4.5-air:Q4_K_M", 16, (4000, 8000)),
]
SHORT = [
    ("qwen3-30b-a3b:Q4_K_M", 6, (700, 1000, 1500, 2000)),
    ("gpt-oss-20b:MXFP4", 4, (1700, 2200, 2800)),
    ("qwen3.6-35b-a3b:Q4_K_M", 4, (1300, 1800, 2300)),
    ("lfm2-8b-a1b:Q4_K_M", 8, (500, 800, 1200)),
    ("granite-4-h-tiny:Q4_K_M", 10, (500, 800)),
]
PROMPT, ANSWER = 512, 24
WAIT_S = 600.0

CHILD = """
import json, sys
import numpy as np
from itertools import accumulate
import strata._native as native
from strata import LLM, SamplingParams
from strata.backends.weights import WeightSource
from strata.memory import cgroup_peak, peak_bytes
path, budget, parallel, prompt, answer = sys.argv[1], *map(int, sys.argv[2:])
from strata.plan import Workload
work = Workload(prompt_tokens=prompt, answer_tokens=answer)
llm = LLM(path, memory=budget, parallel=parallel, context=prompt + 64, workload=work, draft="off")
backend, plan = llm.runtime.backend, llm.plan
seen = bool(plan.expert_slots) and backend._experts is not None
if seen:
    backend.expert_slots().record(on=True)
random = np.random.default_rng(1)
prompts = [random.integers(100, 5000, prompt).tolist() for _ in range(parallel)]
if parallel > 1:
    prompts = [p[:32] for p in prompts]
llm.generate(prompts, SamplingParams(max_tokens=answer, ignore_eos=True, temperature=0))
e, s = llm.explain(), backend.stats()
said = None
if seen:
    visits = backend._experts.visits
    profile = type(backend).profile(llm.model, WeightSource(llm.runtime.file))
    experts = [u.experts for u in profile.units if u.experts]
    firsts = [0, *accumulate(len(c) for _, c in visits)]
    flat = [x for _, c in visits for x in c]
    args = (experts, [v[0] for v in visits], firsts, flat, plan.expert_slots, "frequency")
    hits, misses = native.replay_experts(*args)
    best, rest = native.replay_experts(*args[:-1], "belady")
    said = {"hits": hits, "misses": misses, "belady_hits": best}
print(json.dumps({
    "slots": plan.expert_slots, "experts": sum(u.experts for s in
        type(backend).profile(llm.model, WeightSource(llm.runtime.file)).segments for u in s.units),
    "predicted": {"peak": plan.predicted.peak_bytes, "decode_tok_s": plan.predicted.decode_tok_s,
        "ttft_s": plan.predicted.ttft_s, "hit_rate": plan.predicted.expert_hit_rate},
    "peak": peak_bytes(), "cgroup_peak": cgroup_peak(),
    "prefill_tok_s": e.prefill.tokens_s if e.prefill else None,
    "decode_tok_s": e.decode.tokens_s if e.decode else None,
    "decode_bytes_s": e.decode.disk_bytes_s if e.decode else None,
    "reading_bytes_s": e.decode.reading_bytes_s if e.decode else None,
    "bandwidth": e.disk_bandwidth,
    "decode_hits": e.decode.expert_hits if e.decode else None,
    "decode_misses": e.decode.expert_misses if e.decode else None,
    "hits": s.expert_hits, "misses": s.expert_misses, "simulated": said}))
"""


def in_group(budget: int, command: list[str]) -> tuple[int, str, str]:
    """Exit status (-1: it took longer than anybody waits), output and errors."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with group(budget) as made:
        try:
            done = made.run(command, WAIT_S)
        except subprocess.TimeoutExpired:
            return -1, "", f"longer than {WAIT_S:.0f} s"
    return done.returncode, done.stdout, done.stderr


def ours(path: Path, budget: int, parallel: int) -> dict[str, Any]:
    """What a run of ours said."""
    sizes = [str(n) for n in (budget, parallel, PROMPT, ANSWER)]
    # The simulator begins with an empty cache, too.
    shutil.rmtree(Path(os.environ["STRATA_HOME"]) / "experts", ignore_errors=True)
    code, out, err = in_group(budget, [sys.executable, "-c", CHILD, str(path), *sizes])
    if code != 0:
        last = err.strip().splitlines()
        return {"exit": code, "killed": code in (-9, 137), "error": last[-1][:300] if last else ""}
    return {"exit": 0, "killed": False, **json.loads(out)}


def theirs(program: str, path: Path, budget: int, prompt: int, answer: int) -> dict[str, Any]:
    """llama-bench's tokens a second: of prompts, or of an answer; -9 where it was killed."""
    command = [program, "-m", str(path), "-t", "2", "-r", "1", "-o", "json"]
    command += ["--repack", "0", "-p", str(prompt), "-n", str(answer)]
    code, out, err = in_group(budget, command)
    if code != 0:
        return {"exit": code, "error": err.strip()[-200:]}
    return {"exit": 0, "tok_s": json.loads(out)[0]["avg_ts"]}


def file_name(shape: str, layers: int) -> str:
    """What a model's file is called in the folder."""
    return shape.replace(":", "-") + (f"-{layers}" if layers else "") + ".gguf"


def build(path: Path, shape: str, layers: int) -> None:
    """Write a model of random weights."""
    cut = ["--layers", str(layers)] if layers else []
    command = [sys.executable, "-m", "strata", "synth", shape, str(path), "-q", *cut]
    subprocess.run(command, check=True)


def measured(path: Path, mb: int, llama: str | None) -> dict[str, Any]:
    """All runs of one pair."""
    budget = mb * 10**6
    pair: dict[str, Any] = {"model": path.name, "budget": budget, "file": path.stat().st_size}
    pair["one"] = ours(path, budget, 1)
    if llama is not None:
        pair["llama_decode"] = theirs(llama, path, budget, 0, ANSWER)
        pair["llama_prefill"] = theirs(llama, path, budget, PROMPT, 0)
    pair["sixteen"] = ours(path, budget, 16)
    return pair


def main() -> None:
    """Run the pairs that are not in the results yet, and write after each what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-bench")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--discard", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ["STRATA_HOME"] = str((given.folder / "strata-home").absolute())
    found: dict[str, Any] = {"machine": describe(), "pairs": []}
    if given.out is not None and given.out.exists():
        found["pairs"] = json.loads(given.out.read_text())["pairs"]
    done = {(pair["model"], pair["budget"]) for pair in found["pairs"]}
    for shape, layers, budgets in SHORT if given.short else PAIRS:
        path = given.folder / file_name(shape, layers)
        missing = [mb for mb in budgets if (path.name, mb * 10**6) not in done]
        if given.only not in path.name or not missing:
            continue
        if given.build and not path.exists():
            build(path, shape, layers)
        for mb in missing:
            found["pairs"].append(measured(path, mb, given.llama_bench))
            print(json.dumps(found["pairs"][-1]), flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(found, indent=1) + "\n")
        if given.discard:
            path.unlink()


if __name__ == "__main__":
    main()
