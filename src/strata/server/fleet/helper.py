"""A process that reads headers and plans, or downloads, and ends: none of that stays in memory.

Asked are ``{"describe": [OPTIONS, ...]}`` or ``{"fetch": REFERENCE}``; told are lines as ``wire``
has them, ``described`` with the position and what ``describe`` gives, and ``fetched`` with a path.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from strata.backends.registry import backend_class
from strata.engine.runtime import LoadOptions, base_memory, make_planner, this_machine
from strata.errors import StrataError
from strata.formats import ModelFile, open_model
from strata.formats.summary import summarise
from strata.hub.references import resolve
from strata.machine.constants import DEFAULT_CONTEXT
from strata.models import build_model, embedding_model, trained_context
from strata.plan.prefill import SLOWDOWN
from strata.server.fleet.wire import Pipe
from strata.server.ollama.facts import facts_of, model_info
from strata.text.load import chat_templates

_STEPS = 8
"""Budgets of a curve between the smallest and that in which all is resident."""


def load_options(asked: dict[str, Any]) -> LoadOptions:
    """How a model is loaded to be served, of what the front says."""
    return LoadOptions(
        memory=asked.get("memory"),
        threads=asked["threads"],
        context=asked["context"],
        parallel=asked["parallel"],
        kv_type=asked["kv_type"],
        draft=asked["draft"],
        slowdown=SLOWDOWN,
        serving=True,
    )


def describe(asked: dict[str, Any], base: int) -> dict[str, Any]:
    """What a model is, and its curve: pairs of a budget and the seconds that an ordinary answer
    takes with it by the Plan."""
    path = resolve(asked["model"], download=False)
    with open_model(path) as file:
        summary = summarise(file)
        curve, context, embeds = _curve(file, replace(load_options(asked), process_bytes=base))
        templates = chat_templates(file)
    facts = facts_of(summary)
    return {
        "path": str(path),
        "curve": curve,
        "context": context,
        "details": facts.details,
        "size": facts.size,
        "modified": facts.modified,
        "digest": facts.digest,
        "model_info": model_info(summary),
        "embeds": embeds,
        "template": templates.get("default", next(iter(templates.values()), "")),
    }


def _curve(file: ModelFile, options: LoadOptions) -> tuple[list[tuple[int, float]], int, bool]:
    """Its pairs, the context, and whether the model gives vectors and no texts."""
    context = options.context or min(DEFAULT_CONTEXT, trained_context(file))
    model = build_model(file, context)
    embeds = model.embeds or not model.causal
    if embeds:
        options = replace(options, embedding=True)
        model = embedding_model(model)
    kind = backend_class(options.backend)
    planner, _ = make_planner(file, model, this_machine(file), options, kind)
    floor, full = planner.floor(), planner.everything()
    step = max((full - floor) // _STEPS, 1)
    budgets = sorted({*range(floor, full, step), full})
    found = []
    for budget in budgets:
        told, answer = planner.plan(budget).predicted, planner.workload.answer_tokens
        tokens = answer * max(told.concurrency, 1)
        found.append((budget, told.ttft_s + tokens / max(told.decode_tok_s, 1e-9)))
    return found, context, embeds


def main() -> None:
    """Do what is asked on standard input."""
    pipe = Pipe()
    try:
        asked = pipe.asked()
        pipe.when_left(lambda: os._exit(0))
        if "fetch" in asked:
            path = resolve(asked["fetch"], progress=pipe.progress, refresh=True)
            pipe.tell(fetched=str(path))
            return
        base = base_memory(planned=True)
        for number, each in enumerate(asked["describe"]):
            try:
                pipe.tell(described=[number, describe(each, base)])
            except (StrataError, OSError) as error:
                pipe.tell(undescribed=[number, str(error)])
        pipe.tell(done=True)
    except Exception as error:
        pipe.failed(error)


if __name__ == "__main__":
    main()
