"""Routes of a trained mixture on a text that it was not trained on: skew, stickiness, what policies
find in each budget, and how well the next layer's experts can be told before they are chosen.

    python bench/routes_of_a_trained_mixture.py TEXT [--tokens 8192] [--model FILE] [--out FILE]

TEXT is the test part of WikiText-2; the model (tests/goldens/trained-mixture.gguf, 8 layers of 32
experts, 4 used) was trained on the validation part by tools/train_tiny_mixture.py. Hit rates are of
the second half of the text. Foretold are a layer's experts by its own norm and router from what
went into the attention before it (``attention_ahead``) or into the layer before (``layer_ahead``):
as many as are used (recall at 4), or twice as many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe
from strata import LLM
from strata.backends.weights import WeightSource
from strata.engine import Engine
from strata.program import Segment
from strata.report.routes import compare, hit_rate, record

MODEL = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "trained-mixture.gguf"
WINDOW = 512
DECAYS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
EPSILON = 1e-6

Floats = NDArray[np.float32]


def foretold(llm: LLM, engine: Engine, ids: list[int], chosen: NDArray[np.int32]) -> Any:
    """Recall of the experts of each layer but the first: those foretold of those chosen."""
    source = WeightSource(llm.runtime.file)
    layers = [s for s in llm.model.segments if any(op.kind == "experts" for op in s.program.ops)]
    weights = [{w.name: w for w in s.weights} for s in layers]
    norms, routers = [], []
    for named in weights:
        norms.append(source.floats(next(w for n, w in named.items() if "ffn_norm" in w.source)))
        routers.append(source.floats(next(w for w in named.values() if "gate_inp" in w.source)))
    into: list[list[Floats]] = [[] for _ in layers]
    names = [s.name for s in layers]

    def border(segment: Segment, values: Mapping[str, Floats]) -> None:
        at = names.index(segment.name) + 1 if segment.name in names else 0
        if at < len(layers):
            into[at].append(next(iter(values.values())))

    for start in range(0, len(ids) - 1, WINDOW):
        part = ids[start : start + WINDOW]
        if len(part) > 1:
            engine.visit_logits(part, len(part) - 2, lambda rows: None, border)
    hidden = [np.concatenate(rows) for rows in into]
    out = {}
    for what, back in (("attention_ahead", 0), ("layer_ahead", 1)):
        for times in (1, 2):
            recalls = []
            for layer in range(1, len(layers)):
                x = hidden[layer - back]
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * norms[layer]
                likely = np.argsort(-(x @ routers[layer].T), axis=1)
                likely = likely[:, : times * chosen.shape[2]]
                found = (chosen[:, layer, :, None] == likely[:, None, :]).any(-1)
                recalls.append(float(found.mean()))
            out[f"{what}_of_{times * chosen.shape[2]}"] = {
                "mean": float(np.mean(recalls)),
                "layers": recalls,
            }
    return out


def main() -> None:
    """Record, compare, and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    text = given.text.read_text(encoding="utf-8")
    with LLM(given.model, context=WINDOW) as llm:
        ids = llm.tokenize(text)[: given.tokens]
        with llm.driver.alone() as engine:
            routes = record(llm.runtime, engine, ids, WINDOW)
            recall = foretold(llm, engine, ids, routes.chosen)
        quality = llm.perplexity(ids, context=128)
    total = sum(routes.experts)
    found = {
        "machine": describe(),
        "tokens": routes.tokens,
        "perplexity": quality.perplexity,
        "skew": {str(share): routes.skew(share) for share in (0.05, 0.1, 0.25, 0.5)},
        "stickiness": {str(d): routes.stickiness(d) for d in (1, 2, 4, 8)},
        "stickiness_by_chance": routes.by_chance,
        "foretold": recall,
        "hit_rates": {
            str(rows): [
                {"slots": c.slots, "share": c.slots / total, **c.rates}
                for c in compare(routes, rows)
            ]
            for rows in (1, 16)
        },
        "decay": {
            str(slots): {str(d): hit_rate(routes, slots, "frequency", decay=d) for d in DECAYS}
            for slots in (total // 16, total // 8, total // 4, total // 2)
        },
    }
    written = json.dumps(found, indent=1)
    if given.out is not None:
        given.out.write_text(written + "\n")
    print(written)


if __name__ == "__main__":
    main()
