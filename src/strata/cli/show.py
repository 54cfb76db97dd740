"""``strata show``: what a model is, from its header alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strata.cli.console import print_json, print_table, printable
from strata.cli.options import json_option, model_argument
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.decode.defaults import SamplingDefaults
    from strata.formats import ModelFile
    from strata.formats.summary import Summary


@click.command("show")
@model_argument
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor too.")
@json_option
def command(model: str, with_tensors: bool, as_json: bool) -> None:
    """Describe MODEL, which must be on this machine: shape, quantisation, tokenizer, files.

    Only the header is read, so it takes no time whatever the size of the model.
    """
    from strata.decode.defaults import sampling_defaults
    from strata.formats import open_model
    from strata.formats.summary import summarise
    from strata.hub.references import resolve

    with open_model(resolve(model, download=False)) as opened:
        summary = summarise(opened)
        sampling = sampling_defaults(opened)
        if as_json:
            stated = {"sampling": dict(sampling.states), "sampling_source": sampling.source}
            print_json({**_as_json(summary, opened, with_tensors), **stated})
            return
        _print_facts(summary, _sampling(sampling))
        click.echo()
        print_table(
            ("TYPE", "TENSORS", "PARAMETERS", "SIZE"),
            [
                (share.type, str(share.tensors), _count(share.elements), format_size(share.size))
                for share in summary.types
            ],
        )
        if with_tensors:
            click.echo()
            print_table(
                ("TENSOR", "TYPE", "SHAPE", "SIZE"),
                [
                    (
                        printable(info.name),
                        info.type.name,
                        " x ".join(map(str, info.shape)),
                        format_size(info.nbytes),
                    )
                    for info in opened.tensors.values()
                ],
            )


def _sampling(defaults: SamplingDefaults) -> str:
    if not defaults.states:
        return "greedy (the model states nothing)"
    stated = ", ".join(f"{name} {value:g}" for name, value in defaults.states.items())
    return f"{stated} ({defaults.source})"


def _print_facts(summary: Summary, sampling: str) -> None:
    total = sum(size for _, size in summary.files)
    facts: dict[str, str | int | None] = {
        "name": summary.name,
        "format": "GGUF" if summary.kind == "gguf" else "Hugging Face",
        "architecture": summary.architecture,
        "license": summary.license,
        "parameters": _count(summary.parameters),
        "layers": summary.layers,
        "embedding": summary.embedding_length,
        "heads": _heads(summary),
        "context": summary.context_length,
        "vocabulary": summary.vocabulary,
        "tokenizer": summary.tokenizer,
        "chat template": "yes" if summary.chat_template else "no",
        "sampling": sampling,
        "tensors": summary.tensors,
        "size": format_size(total),
        "files": "\n".join(f"{path} ({format_size(size)})" for path, size in summary.files),
    }
    width = max(map(len, facts)) + 2
    for label, value in facts.items():
        for line in ("-" if value is None else str(value)).split("\n"):
            click.echo(f"{label:<{width}}{printable(line)}")
            label = ""


def _heads(summary: Summary) -> str | None:
    if summary.heads is None:
        return None
    shared = "" if summary.kv_heads is None else f", {summary.kv_heads} of keys and values"
    return f"{summary.heads}{shared}"


def _count(number: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _as_json(summary: Summary, opened: ModelFile, with_tensors: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": summary.name,
        "format": summary.kind,
        "architecture": summary.architecture,
        "license": summary.license,
        "parameters": summary.parameters,
        "layers": summary.layers,
        "embedding_length": summary.embedding_length,
        "heads": summary.heads,
        "kv_heads": summary.kv_heads,
        "context_length": summary.context_length,
        "vocabulary": summary.vocabulary,
        "tokenizer": summary.tokenizer,
        "chat_template": summary.chat_template,
        "tensor_count": summary.tensors,
        "types": [
            {
                "type": share.type,
                "tensors": share.tensors,
                "parameters": share.elements,
                "size_bytes": share.size,
            }
            for share in summary.types
        ],
        "files": [{"path": str(path), "size_bytes": size} for path, size in summary.files],
    }
    if with_tensors:
        value["tensors"] = [
            {
                "name": info.name,
                "type": info.type.name,
                "shape": [*info.shape],
                "offset": info.offset,
                "size_bytes": info.nbytes,
            }
            for info in opened.tensors.values()
        ]
    return value
