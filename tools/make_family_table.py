"""Write docs/families.md: every family that is read, what its logits were compared with, whether
its speed was measured, and every one that is refused, with the reason.

All of it comes from the tables of families, from the tests that compare and from committed results:
`python tools/make_family_table.py` writes the page anew, and tests/house/test_families.py holds it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from strata.models import families
from strata.models.refused import REFUSED
from strata.synth.outline import HUGGING_FACE
from strata.synth.shapes import SHAPES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
_LOGITS, _SPEED = "archs_against_llamacpp.json", "families_against_llamacpp.json"
_SCANS = "scan_share.json"
_TASK = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")
_SAME = 1e-6
_NOT = "-"


def _results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / name).read_text(encoding="utf-8"))


# What llama.cpp's generator writes and is not compared, with the reason.
UNMATCHED = {
    "refact-moe": "llama.cpp loads its experts and leaves them out: its graph of Refact has no "
    "feed-forward where there are experts",
    "deepseek4-moe": "its architecture is refused (below). Built are its mixed streams, queries of "
    "low rank, sinks, and the choice of keys by an indexer; not built are a state with one key for "
    "4 positions (of the last 8) or for 128, made by a softmax over them column by column; one "
    "softmax over those keys and over the window of the last ones; outputs turned back, "
    "of low rank by groups of heads; and a router that looks a token's experts up in a "
    "table",
}


def gguf_logits() -> dict[str, list[str]]:
    """Architectures of llama.cpp's generator, each with its kinds (dense, moe) whose logits are
    those of llama.cpp."""
    found: dict[str, list[str]] = {}
    for file, row in _results(_LOGITS)["files"].items():
        name, kind = file.rsplit("-", 1)
        kinds = found.setdefault(name, [])
        if row.get("nmse", 1.0) < _SAME:
            kinds.append({"moe": "with experts"}.get(kind, kind))
    return found


def speeds() -> dict[str, list[str]]:
    """By GGUF's architecture, how often as fast as llama.cpp models of its shapes were."""
    found: dict[str, list[str]] = {}
    for row in _results(_SPEED)["results"]:
        shape = next(s for name, s in SHAPES.items() if row["model"].startswith(f"{name}-"))
        family = HUGGING_FACE.get(shape.family, (shape.family,))[0]
        work, tokens = row["work"].split(":")
        what = "decode" if work == "decode" else f"prompt of {tokens}"
        found.setdefault(family, []).append(f"{shape.name} {what} {row['ratio']:.2f}")
    return found


def scan_shares() -> list[str]:
    """By shape, what share of a prompt's time recurrences take."""
    return [
        f"{name} {100 * sum(row['scans'].values()):.0f} %"
        for name, row in _results(_SCANS)["shapes"].items()
    ]


def compared() -> set[str]:
    """What is named where directories are compared with transformers."""
    names: set[str] = set()
    for path in (ROOT / "tests" / "models").glob("test_live_*.py"):
        names |= set(re.findall(r'"(\w+)"', path.read_text(encoding="utf-8")))
    for path in (ROOT / "tests" / "goldens").glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8")).get("config", {})
        names |= set(config.get("architectures") or ())
    return {_TASK.sub("", name) for name in names}


def page() -> str:
    """The page."""
    logits, fast, live = gguf_logits(), speeds(), compared()
    known = families()
    lines = [
        "# Families, one by one",
        "`python tools/make_family_table.py` writes this page from the tables of families, the "
        "tests and committed results. [Models and formats](models.md) says what these models are.",
        "",
        "## GGUF files",
        "Logits are compared in float32 with those of llama.cpp, of a tiny model with random "
        f"weights that its own generator wrote (`bench/results/{_LOGITS}`); speed as a multiple of "
        f"llama.cpp's, of models of true shape with some of their layers "
        f"(`bench/results/{_SPEED}`). {_NOT}: neither.",
        "",
        "| `general.architecture` | logits as in llama.cpp | times as fast |",
        "|---|---|---|",
    ]
    for name in sorted(set(logits) & set(known)):
        kinds = ", ".join(logits[name]) or _NOT
        lines.append(f"| {name} | {kinds} | {', '.join(fast.get(name, ())) or _NOT} |")
    lines += ["", "Of the files that the generator writes these are not compared:", ""]
    lines += [f"- {name}: {reason}." for name, reason in sorted(UNMATCHED.items())]
    rest = [name for name in known if name == name.lower() and name not in logits]
    lines += [
        "",
        f"Not among what that generator writes, or other names of these (config.json's "
        f"`model_type`): {', '.join(rest)}.",
        "",
        "## Hugging Face directories",
        "Compared with transformers in float32, prompt and step by step, of tiny models with "
        "random weights (`tests/models/test_live_*.py`, `tests/goldens`).",
        "",
        "| | `architectures` |",
        "|---|---|",
    ]
    classes = [name for name in known if name != name.lower()]
    for title, there in (("compared", True), ("not compared", False)):
        names = [name for name in classes if (_TASK.sub("", name) in live) == there]
        lines.append(f"| {title} | {', '.join(names) or _NOT} |")
    lines += [
        "",
        "## Recurrences",
        "Delta rules, Mamba and RWKV go through the rows of a prompt one by one, each thread with "
        "some columns of a head's state, of which sixteen lie in registers while 32 rows pass: "
        "whatever the cut of a prompt, and token by token, the bits are the same. That takes so "
        "much of a prompt of 512 tokens, norms and decays beside it included "
        f"(`bench/results/{_SCANS}`; models of true shape with some of their layers): "
        f"{', '.join(scan_shares())}. Where the matrix form over chunks of 64 rows was counted "
        "out, for Mamba-2's heads of 64 with states of 128, it has 20,500 multiplications with "
        "addition a row and head for the 24,600 vector lanes of work here, a sixth less at best, "
        "and its sums are in another order than those of single tokens. It is not built.",
        "",
        "## Refused",
        "With these words. What is neither here nor above is refused as not known.",
        "",
        "| | because |",
        "|---|---|",
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"| {', '.join(names)} | {reason} |" for reason, names in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
