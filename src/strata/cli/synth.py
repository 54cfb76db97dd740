"""``strata synth``: a model of random weights in a published shape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strata.cli.console import print_json, print_table, progress_bars
from strata.cli.options import json_option, quiet_option
from strata.errors import UsageError
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.synth import Shape
    from strata.synth.routing import RoutingName


@click.command("synth")
@click.argument("shape", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--quant", default=None, help="Quantisation of a GGUF file  [default: Q4_K_M].")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("gguf", "safetensors")),
    default=None,
    help="safetensors: a Hugging Face directory in bf16  [default: gguf].",
)
@click.option("--layers", type=click.IntRange(min=1), help="Only the first so many layers.")
@click.option(
    "--routing",
    type=click.Choice(("even", "skewed", "sticky")),
    default=None,
    help="Routers that choose all experts alike, or some more often, or these and the last ones "
    "again  [default: as random weights do].",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--keep", is_flag=True, help="Keep what was written when interrupted (*.partial).")
@click.option("--list", "list_shapes", is_flag=True, help="List the shapes and quantisations.")
@quiet_option
@json_option
def command(
    shape: str | None,
    out: Path | None,
    quant: str | None,
    kind: str | None,
    layers: int | None,
    routing: RoutingName | None,
    seed: int,
    force: bool,
    keep: bool,
    list_shapes: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write OUT, a model of SHAPE with random weights and SmolLM2's tokenizer.

    SHAPE may name a quantisation, as in qwen3-30b-a3b:Q4_K_M.

    It has the size and the speed of the real one, so a machine can be measured before a download;
    its words mean nothing. --list shows the shapes.
    """
    if list_shapes:
        _list(as_json)
        return
    if shape is None or out is None:
        raise UsageError("give a shape and a path, or --list")
    shape, _, named = shape.partition(":")
    if named and quant not in (None, named):
        raise UsageError(f"the shape says {named}, --quant says {quant}: give one of them")
    quant = quant or named or None
    if kind == "safetensors" and quant not in (None, "BF16", "bf16"):
        raise UsageError("a Hugging Face directory is written in bf16; --quant is for GGUF files")
    from strata.formats import open_model
    from strata.hub.references import resolve
    from strata.synth import find_shape, with_layers, write_model

    chosen = find_shape(shape)
    if layers is not None:
        chosen = with_layers(chosen, layers)
    if out.exists() and not force and (kind != "safetensors" or not out.is_dir()):
        raise UsageError(f"{out} is there already; --force writes over it")
    with progress_bars(silent=quiet or as_json) as progress:
        with open_model(resolve("smollm2", progress=progress)) as source:
            tokenizer = dict(source.metadata)
        size = write_model(
            chosen,
            out,
            recipe=None if kind == "safetensors" else quant or "Q4_K_M",
            tokenizer=tokenizer,
            seed=seed,
            routing=routing,
            progress=progress,
            keep_partial=keep,
        )
    if as_json:
        print_json({"shape": chosen.name, "path": str(out), "weight_bytes": size, "seed": seed})
    else:
        click.echo(f"{out}: {chosen.name}, {format_size(size)} of random weights")


def _list(as_json: bool) -> None:
    from strata.synth import RECIPES, SHAPES

    rows = [_row(shape) for shape in SHAPES.values()]
    if as_json:
        print_json({"shapes": rows, "quantisations": list(RECIPES)})
        return
    print_table(
        ("SHAPE", "PARAMETERS", "LAYERS", "WIDTH", "Q4_K_M"),
        [
            (
                r["shape"],
                f"{r['parameters'] / 1e9:.3g} B",
                str(r["layers"]),
                str(r["width"]),
                format_size(r["q4_k_m_bytes"]),
            )
            for r in rows
        ],
    )
    click.echo(f"quantisations: {', '.join(RECIPES)}")


def _row(shape: Shape) -> dict[str, Any]:
    from math import prod

    from strata.synth import describe

    header = describe(shape, "Q4_K_M")
    return {
        "shape": shape.name,
        "parameters": sum(prod(t.shape) for t in header.tensors.values() if len(t.shape) > 1),
        "layers": shape.layers,
        "width": shape.width,
        "q4_k_m_bytes": header.nbytes,
    }
