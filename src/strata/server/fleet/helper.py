"""A process that reads headers and plans, or downloads, and ends: none of that stays in memory.

Asked are ``{"describe": [OPTIONS, ...]}`` or ``{"fetch": REFERENCE}``; told are lines as ``wire``
has them: ``described`` with the position and what ``describe`` gives, ``undescribed`` with the
position, why, and whether whoever asked has to ask otherwise; ``fetched`` with a path, and whether
something of it was here ``before``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from strata.backends.registry import backend_class
from strata.engine.runtime import LoadOptions, base_memory, make_planner, this_machine
from strata.errors import StrataError, UsageError
from strata.formats import ModelFile, open_model
from strata.formats.summary import summarise
from strata.hub.cache import HubRef, repository_folder
from strata.hub.downloads import ModelNotFound
from strata.hub.references import parse, resolve
from strata.machine.constants import DEFAULT_CONTEXT
from strata.models import build_model, embedding_model, trained_context
from strata.plan.prefill import SLOWDOWN
from strata.server.fleet.wire import HELPER_BYTES, Pipe
from strata.server.ollama.facts import facts_of, model_info
from strata.text.load import chat_templates

_LEAST_ROOM = 64 << 20
"""For reading a header, whatever the process takes already."""

_STEPS = 8
"""Budgets of a curve between the smallest and that in which all is resident."""

_TOLD = 64 << 10
"""Characters of a chat template that the front keeps to show it: real ones have half as many."""

_NAME = 1000
"""Characters of a name or a licence."""


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
    with open_model(path, max(HELPER_BYTES - base, _LEAST_ROOM)) as file:
        summary = summarise(file)
        curve, context, embeds = _curve(file, replace(load_options(asked), process_bytes=base))
        templates = chat_templates(file)
    facts = facts_of(summary)
    template = templates.get("default", next(iter(templates.values()), ""))
    return {
        "path": str(path),
        "curve": curve,
        "context": context,
        "details": facts.details,
        "size": facts.size,
        "modified": facts.modified,
        "digest": facts.digest,
        "model_info": {
            key: value[:_NAME] if isinstance(value, str) else value
            for key, value in model_info(summary).items()
        },
        "embeds": embeds,
        "template": template if len(template) <= _TOLD else "",
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


def _is_here(reference: str) -> bool:
    """Whether anything of what is asked for is on this machine, so that it is not ours to delete:
    other programs have the same cache."""
    parsed = parse(reference, local=False)
    if isinstance(parsed, HubRef):
        return any(repository_folder(parsed.repo).glob("snapshots/*/*"))
    try:
        resolve(reference, download=False, local=False)
    except ModelNotFound:
        return False
    return True


def main() -> None:
    """Do what is asked on standard input."""
    pipe = Pipe()
    try:
        asked = pipe.asked()
        pipe.when_left(lambda: os._exit(0))
        if "fetch" in asked:
            before = _is_here(asked["fetch"])
            path = resolve(asked["fetch"], progress=pipe.progress, refresh=True, local=False)
            pipe.tell(fetched=str(path), before=before)
            return
        base = base_memory(planned=True)
        for number, each in enumerate(asked["describe"]):
            try:
                pipe.tell(described=[number, describe(each, base)])
            except Exception as error:
                known = isinstance(error, StrataError | OSError)
                why = str(error) if known else f"unexpected {type(error).__name__}: {error}"
                pipe.tell(undescribed=[number, why, isinstance(error, UsageError)])
        pipe.tell(done=True)
    except Exception as error:
        pipe.failed(error)


if __name__ == "__main__":
    main()
