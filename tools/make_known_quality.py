"""Makes src/strata/report/quality/known.json from results of bench and of `strata quality`.

`python tools/make_known_quality.py RESULT.json FOLDER q8_0=kv.json ...`, with the folder of the
files that were measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from strata.cli.plan_fit import most_of
from strata.formats import open_model

MODEL = "SmolLM2-135M-Instruct"
# Its weights were rounded to these levels before: they would seem to cost nothing.
VACUOUS = ("Q4_1", "Q5_1")


def cost(kl: float, same_top: float) -> dict[str, Any]:
    return {"kl": float(f"{kl:.3g}"), "same_top": round(same_top, 4)}


def main() -> None:
    measured = json.loads(Path(sys.argv[1]).read_text())
    weights: dict[str, Any] = {}
    for row in measured["results"]:
        name = Path(row["file"]).stem
        if name not in VACUOUS:
            s = row["strata"]
            weights[name] = cost(s["kl"], s["same_top"])
            with open_model(Path(sys.argv[2]) / row["file"]) as file:
                weights[name]["type"] = most_of(file)
    kv: dict[str, Any] = {}
    for word in sys.argv[3:]:
        name, _, path = word.partition("=")
        (m,) = json.loads(Path(path).read_text())["models"]
        kv[name] = cost(m["kl"]["value"], m["same_top"]["value"])
    how = (
        f"files of llama-quantize with an importance matrix, {measured['chunks']} windows of "
        f"{measured['context']} tokens of WikiText-2; its own weights were rounded to 16 levels "
        "once, which flatters 4 bits and more"
    )
    table = {"model": MODEL, "how": how, "weights": weights, "kv": kv}
    target = Path(__file__).parents[1] / "src/strata/report/quality/known.json"
    target.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
