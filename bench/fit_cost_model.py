"""Predicted against measured: what `strata plan` says and what `strata bench` then finds.

Cases are MODEL,BUDGET,PROMPT with `-` for all the memory that is free:

    python bench/fit_cost_model.py --fit a.gguf,-,128 a.gguf,500MB,128 --check b.gguf,1GB,300

Before each case the machine is probed afresh, and after it again, because a shared one changes its
speed, often twofold and within seconds: `drift` is how much faster or slower it has become. A case
during which that is more than a tenth says nothing about the model and is measured again, `--tries`
times at most; `steady` sums up those during which the machine stood still. Constants of
`strata.machine.constants` are fitted to the cases of `--fit`; those of `--check` are left out of
that and only say how far predictions are off. Prints one JSON object: a row for each case with
ratios (predicted / measured), a summary of each set, and the constants that would fit best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from strata.backends.cpu.backend import CpuBackend
from strata.backends.weights import WeightSource
from strata.formats import open_model
from strata.machine import constants
from strata.machine.rates import best_read
from strata.models import build_model
from strata.plan import Limits, Machine, Plan, Prediction, Workload, from_json
from strata.plan.memory_model import Sizes
from strata.plan.outline import outline
from strata.plan.planner import Planner

COMPARED = ("ttft_s", "decode_tok_s", "load_s")
FITTED = (
    *("NODE", "STEP", "SAMPLE", "SAMPLE_LOGIT", "ELEMENTWISE_BYTES"),
    *("DISK_SHARE", "RING_SHARE", "OPEN", "OPEN_TOKEN", "FRESH_BYTES"),
)
STEPS = (0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0)
STEADY = 1.1
SHARES = {"DISK_SHARE", "RING_SHARE"}


def strata(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "strata", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        raise SystemExit(f"{' '.join(command)}: {result['error']['message']}")
    return result


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a case: the first try during which the machine stood still, else the best."""
    rows: list[dict[str, Any]] = []
    while len(rows) < args.tries and not (rows and rows[-1]["drift"] < STEADY):
        rows.append(compare(case, args))
    return min(rows, key=lambda row: float(row["drift"])) | {"tries": len(rows)}


def compare(case: str, args: argparse.Namespace) -> dict[str, Any]:
    model, memory, prompt = case.split(",")
    before = _machine(model)
    budget = [] if memory == "-" else ["--memory", memory]
    common = ["--threads", str(args.threads), *budget]
    context = int(prompt) + args.gen + 1
    plan = strata(
        "plan",
        model,
        *("--prompt-tokens", prompt, "--answer-tokens", str(args.gen)),
        *("--context", str(context)),
        *common,
    )["plan"]
    bench = strata(
        "bench",
        model,
        *("--prompt", prompt, "--gen", str(args.gen), "--depth", prompt),
        *("--repeat", str(args.repeat), "--explain"),
        *common,
    )
    explained = bench["explanation"]
    row: dict[str, Any] = {"case": case, "bound": plan["predicted"]["bound"]}
    for name in COMPARED:
        row[name] = _ratio(plan["predicted"][name], bench[name])
    row["peak_bytes"] = _ratio(explained["predicted_peak_bytes"], explained["peak_bytes"])
    row["drift"] = _drift(before, _machine(model), streams=bool(plan["streamed"]))
    row["machine"], row["plan"] = before, plan
    return row


def _machine(model: str) -> dict[str, Any]:
    probed = strata("probe", model, "--refresh")
    machine: dict[str, Any] = probed.get("machine", probed)
    return machine


def _drift(before: dict[str, Any], after: dict[str, Any], *, streams: bool) -> float:
    """The largest change of what memory and products reach, and the disk where it counts, as a
    ratio above 1."""

    def rates(machine: dict[str, Any]) -> list[float]:
        kernels = [k for k in machine["kernels"] if k["format"] in ("Q4_0", "Q8_0", "Q4_K")]
        mode = machine["disk"][0]["mode"]
        disk = max(d["bytes_s"] for d in machine["disk"] if d["mode"] == mode)
        return [
            *([disk] if streams else []),
            max(r["bytes_s"] for r in machine["memory_read"]),
            statistics.mean(k["decode_bytes_s"] for k in kernels),
            statistics.mean(k["prefill_ops_s"] for k in kernels),
        ]

    return max(max(a / b, b / a) for a, b in zip(rates(before), rates(after), strict=True))


def _ratio(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted": predicted, "measured": measured, "ratio": predicted / measured}


def repredict(row: dict[str, Any]) -> Prediction:
    """What the constants as they are now say of a row's Plan."""
    plan = from_json(Plan, row["plan"])
    machine = from_json(Machine, row["machine"])
    model = row["case"].split(",")[0]
    p = plan.predicted
    workload = Workload(p.prompt_tokens, p.concurrency, plan.context, row["gen"])
    with open_model(Path(model)) as file:
        built = build_model(file, plan.context)
        profile = CpuBackend.profile(built, WeightSource(file))
        sizes = outline(model, built, file, profile)
    planner = Planner(sizes, machine, Limits(None, plan.threads, plan.kv_type), workload)
    if plan.streamed:
        smallest = min(d.request_bytes for d in machine.disk)
        read = best_read(machine, max(plan.tile_bytes, smallest), large=True)
    else:
        read = best_read(machine, constants.LOADING_REQUEST)
    chosen = Sizes(
        *(plan.threads, plan.max_tokens, plan.logit_rows, plan.kv_blocks),
        *(plan.context, plan.parallel, plan.kv_type),
        *(plan.ring_bytes, plan.request_bytes, plan.io_threads),
    )
    return planner.predict(chosen, read, frozenset(plan.resident))


def error(rows: list[dict[str, Any]]) -> float:
    """Mean square of the logarithm of how far predictions are off."""
    total = 0.0
    for row in rows:
        now = repredict(row)
        for name in COMPARED:
            total += math.log(getattr(now, name) / row[name]["measured"]) ** 2
    return total / len(rows)


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The constants that fit best, found one at a time; they are left as they were."""
    before = {name: getattr(constants, name) for name in FITTED}
    best = error(rows)
    for _ in range(2):
        for name in FITTED:
            start = getattr(constants, name)
            kept = start
            for step in STEPS:
                tried = min(1.0, start * step) if name in SHARES else start * step
                setattr(constants, name, tried)
                now = error(rows)
                if now < best:
                    best, kept = now, tried
            setattr(constants, name, kept)
    found = {name: getattr(constants, name) for name in FITTED}
    for name, value in before.items():
        setattr(constants, name, value)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in (*COMPARED, "peak_bytes"):
        ratios = [row[name]["ratio"] for row in rows]
        out[name] = {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "within_20_percent": sum(1 / 1.2 <= r <= 1.2 for r in ratios),
            "cases": len(ratios),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--check", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--gen", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    result: dict[str, Any] = {"threads": args.threads}
    for name, cases in (("fit", args.fit), ("check", args.check)):
        rows = []
        for case in cases:
            rows.append(measure(case, args) | {"gen": args.gen})
            found = {key: round(rows[-1][key]["ratio"], 3) for key in (*COMPARED, "peak_bytes")}
            found["drift"] = round(rows[-1]["drift"], 3)
            print(case, found, file=sys.stderr, flush=True)
        if rows:
            result[name] = {"summary": summary(rows)}
            steady = [row for row in rows if row["drift"] < STEADY]
            if steady:
                result[name]["steady"] = summary(steady)
            if name == "fit":
                result["constants"] = fit(rows)
            shown = [{k: v for k, v in r.items() if k not in ("machine", "plan")} for r in rows]
            result[name]["rows"] = shown
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
