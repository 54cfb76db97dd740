"""Mixtures whose experts do not fit, in control groups of exactly the budget: killed or not, peaks
and speeds against the Plan, hits against the simulator, and llama.cpp with mmap in the same group.

    python bench/experts_in_budgets.py FOLDER [--llama-bench PROGRAM] [--build] [--discard]
        [--only TEXT] [--budgets MB,MB] [--short] [--out FILE]

FOLDER holds what `strata synth` writes, by the names of `file_name`: random weights, whose routers
choose nearly all experts alike, and tokens are drawn at random, as llama-bench draws its own: the
worst case for any cache. With --build a file that is not there is written when its turn comes (up
to 21 GB, some minutes each), and with --discard deleted after its last pair, so that there is one
at a time. A FILE that is there is gone on with: pairs that it has are not run again; --only takes
those whose model's name has the text in it, --budgets those of these sizes. --short has some
layers alone of each model, in gigabytes less. Needs root and control groups.

For each model the disk is measured and the routes of a random text are recorded first, and those of
sixteen short ones, by which Plans predict. Each pair runs one sequence with a prompt of 512 and
sixteen with prompts of 32; tok/s are those of sweeps that decode, and of the prompts. The page
cache is dropped before each run. llama.cpp has its weights as they are in the file (--repack 0),
since a copy of them would not fit, and where it is killed another try with smaller steps (-ub 64).
`holds` says of each pair what was as it should be. Speeds are of use from a quiet machine alone:
`load` tells how quiet it was.
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
from strata.engine.routes import known_hits

# Shape and type, layers (0: all), and budgets in MB.
PAIRS = [
    ("qwen3-30b-a3b:Q4_K_M", 0, (2000, 4000, 8000)),
    ("gpt-oss-20b:MXFP4", 0, (2000, 6000)),
    ("lfm2-8b-a1b:Q4_K_M", 0, (1000, 2000)),
    ("mixtral-8x7b:Q4_K_M", 12, (3000, 6000)),
    ("gpt-oss-120b:MXFP4", 10, (4000, 8000)),
    ("glm-4.5-air:Q4_K_M", 8, (3000, 6000)),
    ("qwen3.6-35b-a3b:Q4_K_M", 0, (3000, 8000)),
]
SHORT = [
    ("qwen3-30b-a3b:Q4_K_M", 6, (700, 1000, 1500, 2000)),
    ("gpt-oss-20b:MXFP4", 4, (1700, 2200, 2800)),
    ("qwen3.6-35b-a3b:Q4_K_M", 4, (1300, 1800, 2300)),
    ("lfm2-8b-a1b:Q4_K_M", 8, (500, 800, 1200)),
    ("granite-4-h-tiny:Q4_K_M", 10, (500, 800)),
]
PROMPTS = {1: 512, 16: 32}
"""Tokens of a prompt, by how many sequences run together."""

ANSWER, RECORDED = 24, 512
WAIT_S = 600.0
# llama.cpp may take a minute a token where all that it reads comes from the disk again.
THEIR_ANSWER, THEIR_WAIT_S = 8, 1200.0

# What is asked of a run: its peak, its speed, and its hits against what they should be.
PEAK, SPEED, HITS, BELADY, DISK = 0.05, 0.20, 0.03, 0.10, 0.90
# Times as fast as llama.cpp, and of sixteen sequences as one.
DECODE, PREFILL, TOGETHER = 4.0, 6.0, 5.0

RECORD = """
import sys
from pathlib import Path
import numpy as np
from strata import LLM
from strata.report.routes import curves, keep, record
path, budget, *windows = sys.argv[1], *map(int, sys.argv[2:])
random, kept = np.random.default_rng(7), []
with LLM(path, memory=budget, context=max(windows), draft="off") as llm:
    for rows, tokens in zip((1, 16), windows):
        ids = random.integers(100, 5000, rows * tokens).tolist()
        with llm.driver.alone(idle=True) as engine:
            routes = record(llm.runtime, engine, ids, tokens)
        kept += curves(routes, rows)
    keep(Path(path), routes, kept)
"""

CHILD = """
import json, sys
import numpy as np
import strata._native as native
from strata import LLM, SamplingParams
from strata.backends.weights import WeightSource
from strata.memory import cgroup_peak, peak_bytes
from strata.plan import Workload
path, budget, parallel, prompt, answer = sys.argv[1], *map(int, sys.argv[2:])
work = Workload(prompt_tokens=prompt, answer_tokens=answer)
llm = LLM(path, memory=budget, parallel=parallel, context=prompt + 64, workload=work, draft="off")
backend, plan = llm.runtime.backend, llm.plan
seen = bool(plan.expert_slots) and backend._experts is not None
if seen:
    backend.expert_slots().record(on=True)
random = np.random.default_rng(1)
prompts = [random.integers(100, 5000, prompt).tolist() for _ in range(parallel)]
llm.generate(prompts, SamplingParams(max_tokens=answer, ignore_eos=True, temperature=1, seed=1))
e, s = llm.explain(), backend.stats()
profile = type(backend).profile(llm.model, WeightSource(llm.runtime.file))
said = None
if seen:
    visits = backend._experts.visits
    args = ([u.experts for u in profile.units if u.experts], visits, plan.expert_slots)
    how = {"decay": plan.expert_decay, "sure": plan.expert_sure}
    hits, misses = native.replay_experts(*args, "frequency", **how)
    belady, _ = native.replay_experts(*args, "belady")
    said = {"hits": hits, "misses": misses, "belady_hits": belady}
p, d = plan.predicted, e.decode
print(json.dumps({
    "slots": plan.expert_slots, "experts": profile.experts, "decay": plan.expert_decay,
    "sure": plan.expert_sure,
    "predicted": {"peak": p.peak_bytes, "decode_tok_s": p.decode_tok_s, "ttft_s": p.ttft_s,
                  "hit_rate": p.expert_hit_rate},
    "peak": peak_bytes(), "cgroup_peak": cgroup_peak(),
    "prefill_tok_s": e.prefill.tokens_s if e.prefill else None, "decode_tok_s": d.tokens_s,
    "prefill_waited_share": e.prefill.waited_share if e.prefill else None,
    "prefill_reading_bytes_s": e.prefill.reading_bytes_s if e.prefill else None,
    "decode_bytes_s": d.disk_bytes_s, "reading_bytes_s": d.reading_bytes_s,
    "waited_share": d.waited_share, "bandwidth": e.disk_bandwidth,
    "decode_hits": d.expert_hits, "decode_misses": d.expert_misses,
    "hits": s.expert_hits, "misses": s.expert_misses, "simulated": said}))
"""


def in_group(budget: int, command: list[str], wait_s: float = WAIT_S) -> tuple[int, str, str]:
    """Exit status (-1: it took longer than anybody waits), output and errors."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with group(budget) as made:
        try:
            done = made.run(command, wait_s)
        except subprocess.TimeoutExpired:
            return -1, "", f"longer than {wait_s:.0f} s"
    return done.returncode, done.stdout, done.stderr


def ours(path: Path, budget: int, parallel: int) -> dict[str, Any]:
    """What a run of ours said."""
    sizes = [str(n) for n in (budget, parallel, PROMPTS[parallel], ANSWER)]
    # The simulator begins with an empty cache, too.
    shutil.rmtree(Path(os.environ["STRATA_HOME"]) / "experts", ignore_errors=True)
    load = os.getloadavg()[0]
    code, out, err = in_group(budget, [sys.executable, "-c", CHILD, str(path), *sizes])
    if code != 0:
        last = err.strip().splitlines()
        error = last[-1][:300] if last else ""
        return {"exit": code, "killed": code in (-9, 137), "error": error, "load": load}
    return {"exit": 0, "killed": False, "load": load, **json.loads(out)}


def theirs(program: str, path: Path, budget: int, prompt: int, answer: int) -> dict[str, Any]:
    """llama-bench's tokens a second: of prompts, or of an answer; -9 where it was killed."""
    command = [program, "-m", str(path), "-t", str(os.cpu_count()), "-r", "1", "-o", "json"]
    command += ["--repack", "0", "-p", str(prompt), "-n", str(answer)]
    for more in ([], ["-ub", "64"]):
        code, out, err = in_group(budget, [*command, *more], THEIR_WAIT_S)
        if code == 0:
            return {"exit": 0, "tok_s": json.loads(out)[0]["avg_ts"], "options": " ".join(more)}
        if code == -1:
            break
    return {"exit": code, "error": err.strip()[-200:]}


def of_run(run: dict[str, Any]) -> dict[str, bool]:
    """What holds of a run of ours."""
    if run["exit"] != 0:
        return {"ended": False}
    predicted, said = run["predicted"], run["simulated"]
    held = {
        "ended": True,
        "peak": abs(run["peak"] / predicted["peak"] - 1) <= PEAK,
        "speed": abs(run["decode_tok_s"] / predicted["decode_tok_s"] - 1) <= SPEED,
        "disk": run["reading_bytes_s"] >= DISK * run["bandwidth"],
    }
    if said is not None:
        all_needed = run["hits"] + run["misses"]
        needed = run["decode_hits"] + run["decode_misses"]
        rate = run["decode_hits"] / max(1, needed)
        held["simulated_hits"] = abs(run["hits"] - said["hits"]) <= HITS * all_needed
        held["predicted_hits"] = abs(rate - predicted["hit_rate"]) <= HITS
        held["belady"] = said["belady_hits"] - run["hits"] <= BELADY * all_needed
    return held


def of_pair(pair: dict[str, Any]) -> dict[str, Any]:
    """What holds of a pair; of llama.cpp nothing where it did not run or did not end."""
    one, sixteen = pair["one"], pair["sixteen"]
    held: dict[str, Any] = {"one": of_run(one), "sixteen": of_run(sixteen)}
    if one["exit"] == sixteen["exit"] == 0:
        held["together"] = sixteen["decode_tok_s"] >= TOGETHER * one["decode_tok_s"]
    for what, times in (("decode", DECODE), ("prefill", PREFILL)):
        other = pair.get(f"llama_{what}", {}).get("tok_s")
        if other and one["exit"] == 0:
            held[f"llama_{what}"] = one[f"{what}_tok_s"] >= times * other
    return held


def file_name(shape: str, layers: int) -> str:
    """What a model's file is called in the folder."""
    return shape.replace(":", "-") + (f"-{layers}" if layers else "") + ".gguf"


def strata(*words: str) -> None:
    """Run a verb."""
    command = [sys.executable, "-m", "strata", *words, "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def prepare(path: Path, shape: str, layers: int, budget: int, *, build: bool) -> None:
    """Write a model of random weights unless it is there, measure its disk, and record its routes
    unless there are some."""
    if build and not path.exists():
        strata("synth", shape, str(path), *(["--layers", str(layers)] if layers else []))
    strata("probe", str(path))
    if known_hits([path]):
        return
    tokens = (str(RECORDED), str(PROMPTS[16] + ANSWER))
    command = [sys.executable, "-c", RECORD, str(path), str(budget), *tokens]
    code, _, err = in_group(budget, command)
    if code != 0:
        print(f"{path.name}: no routes were recorded: {err.strip()[-300:]}", file=sys.stderr)


def measured(path: Path, mb: int, llama: str | None) -> dict[str, Any]:
    """All runs of one pair."""
    budget = mb * 10**6
    pair: dict[str, Any] = {"model": path.name, "budget": budget, "file": path.stat().st_size}
    pair["one"] = ours(path, budget, 1)
    if llama is not None:
        pair["llama_decode"] = theirs(llama, path, budget, 0, THEIR_ANSWER)
        pair["llama_prefill"] = theirs(llama, path, budget, PROMPTS[1], 0)
    pair["sixteen"] = ours(path, budget, 16)
    return {**pair, "holds": of_pair(pair)}


def main() -> None:
    """Run the pairs that are not in the results yet, and write after each what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-bench")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--discard", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--budgets", type=lambda text: {int(mb) for mb in text.split(",")})
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ["STRATA_HOME"] = str((given.folder / "strata-home").absolute())
    found: dict[str, Any] = {"machine": describe(), "pairs": []}
    if given.out is not None and given.out.exists():
        found["pairs"] = json.loads(given.out.read_text())["pairs"]
    done = {(pair["model"], pair["budget"]) for pair in found["pairs"]}
    for shape, layers, budgets in SHORT if given.short else PAIRS:
        path = given.folder / file_name(shape, layers)
        wanted = [mb for mb in budgets if not given.budgets or mb in given.budgets]
        missing = [mb for mb in wanted if (path.name, mb * 10**6) not in done]
        if given.only not in path.name or not missing:
            continue
        prepare(path, shape, layers, max(budgets) * 10**6, build=given.build)
        for mb in missing:
            found["pairs"].append(measured(path, mb, given.llama_bench))
            print(json.dumps(found["pairs"][-1]), flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(found, indent=1) + "\n")
        if given.discard:
            path.unlink()


if __name__ == "__main__":
    main()
