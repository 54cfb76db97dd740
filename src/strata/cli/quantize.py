"""``strata quantize``: a model in smaller types."""

from __future__ import annotations

import os
import re
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from strata.cli.console import print_json, progress_bars, remark
from strata.cli.failures import resumable, terminable
from strata.cli.options import (
    SIZE,
    json_option,
    memory_option,
    model_argument,
    quiet_option,
    threads_option,
)
from strata.cores import usable_cores
from strata.errors import UsageError
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.formats import ModelFile
    from strata.machine.machine import Machine
    from strata.quant import BlockType
    from strata.quantizer.lab import Calibration
    from strata.quantizer.quantise import Written

_CHUNKS = 32


@click.command("quantize")
@model_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "mix",
    default=None,
    help="A mix by llama.cpp's name, such as Q4_K_M, IQ3_XXS or Q8_0, or F16  [default: Q4_K_M].",
)
@click.option("--bpw", type=float, help="The best mix of so many bits a weight, such as 3.5.")
@click.option("--size", type=SIZE, help="The best mix for a file of at most that size.")
@click.option(
    "--fit",
    type=SIZE,
    help="The best mix of which nothing streams in a memory of that size (`strata run -m`).",
)
@click.option(
    "--machine",
    "machine_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The machine that --fit is for, a file of `strata probe --json`  [default: this one].",
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Types tensor by tensor, as --write-recipe wrote them.",
)
@click.option(
    "--write-recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what --bpw, --size or --fit chose.",
)
@click.option(
    "--imatrix",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Weigh errors by this importance matrix (llama.cpp's or strata imatrix's).",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text: errors are weighed by it, made up for by later columns (GPTQ), and the mix is "
    "chosen by what they cost on it.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Windows of the text  [default: 32].")
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=16),
    default=512,
    show_default=True,
    help="Tokens of a window.",
)
@click.option("--no-gptq", is_flag=True, help="Round each value for itself.")
@click.option(
    "--distil",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="With --calibration: so many steps for each layer towards rounding with which it gives "
    "what the floats give (AutoRound's way); some 20, for models of up to 1B.",
)
@click.option(
    "--fold",
    type=click.Choice(["awq", "smoothquant", "hadamard"]),
    help="Change weights so that answers stay: awq moves scales for what rounding loses, "
    "smoothquant for activations of 8 bits, both by the calibration; hadamard turns the stream.",
)
@click.option(
    "--format",
    "studied",
    metavar="NAME",
    help="Matrices of layers in a format that is studied, for small models: nf4, dynamic-tree, "
    "spqr, squeezellm, aqlm, trellis, llm-int8, arcquant, mxfp4-rotated or nvfp4-rotated; OUT ends "
    "in .safetensors.",
)
@click.option("--pure", is_flag=True, help="Every matrix in the mix's own type.")
@click.option(
    "--tensor",
    "overrides",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Tensors whose name has PATTERN (a regular expression) in TYPE; may be repeated, the "
    "first that matches counts.",
)
@memory_option
@threads_option
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@quiet_option
@json_option
@terminable()
def command(
    model: str,
    out: Path,
    mix: str | None,
    bpw: float | None,
    size: int | None,
    fit: int | None,
    machine_file: Path | None,
    recipe: Path | None,
    write_recipe: Path | None,
    imatrix: Path | None,
    calibration: Path | None,
    chunks: int | None,
    context: int,
    no_gptq: bool,
    distil: int | None,
    fold: str | None,
    studied: str | None,
    pure: bool,
    overrides: tuple[str, ...],
    memory: int | None,
    threads: int | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write MODEL as OUT, a GGUF file of smaller types (with --format a .safetensors file).

    The file has the same bytes whatever the budget and the threads. A run that is interrupted is
    gone on with when the same command is given again; OUT appears when it is whole.
    """
    _check(out, force, ".gguf" if studied is None else ".safetensors")
    wishes = {"--type": mix, "--bpw": bpw, "--size": size, "--fit": fit, "--recipe": recipe}
    wishes |= {"--format": studied}
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both say what to write: give one of them")
    searched = bpw is not None or size is not None or fit is not None
    if write_recipe is not None and not searched:
        raise UsageError("--write-recipe writes what --bpw, --size or --fit chose: give one")
    if machine_file is not None and fit is None:
        raise UsageError("--machine is the one that --fit is for: give both")
    if fold in ("awq", "smoothquant") and calibration is None:
        raise UsageError(f"--fold {fold} goes by a text: give --calibration FILE")
    if fold == "hadamard" and imatrix is not None:
        raise UsageError("--imatrix is of columns that --fold hadamard mixes: give --calibration")
    if distil is not None and (calibration is None or no_gptq):
        raise UsageError("--distil goes by a text, after GPTQ: give --calibration, not --no-gptq")
    if studied is not None:
        others = {"--imatrix": imatrix is not None, "--fold": fold is not None}
        others |= {"--distil": distil is not None, "--memory": memory is not None}
        others |= {"--pure": pure, "--no-gptq": no_gptq, "--tensor": bool(overrides)}
        odd = [name for name, is_given in others.items() if is_given]
        if odd:
            raise UsageError(f"{' and '.join(odd)} and --format do not go together")
    count = calibration_threads(threads) if calibration is not None or studied else threads
    from strata.formats import open_model
    from strata.hub.references import resolve
    from strata.quantizer.importance import read_importance, split_experts
    from strata.quantizer.lab import STEPS
    from strata.quantizer.mixes import Facts, choose_types, find_mix, fitting, is_quantised
    from strata.quantizer.opening import as_gguf, source_of
    from strata.quantizer.quantise import header_nbytes, quantise

    # Files of a mix of their own are called what most of such files are.
    chosen = find_mix(mix or "Q4_K_M")
    rules = [_override(text) for text in overrides]
    started = perf_counter()
    with progress_bars(silent=quiet or as_json, counted=(*STEPS, "encoding")) as progress:
        path = resolve(model, progress=progress)
        if out.exists() and out.samefile(path):
            raise UsageError(f"{out} is the model itself: give another name")
        with open_model(path) as opened:
            file = as_gguf(opened)
            source = source_of(file)
            lossy = [t for t in source.tensors.values() if is_quantised(t.name, t.shape)]
            already = {t.type.name for t in lossy} - {"F32", "F16", "BF16", "F64"}
            if studied is not None:
                from strata.quantizer.research import write_research

                text = None
                if calibration is not None:
                    text = calibration_text(file, calibration, context, chunks or _CHUNKS)
                result = write_research(file, source, out, studied, text, count or 1, progress)
                _tell(model, out, studied, result, perf_counter() - started, as_json)
                return
            if fold == "hadamard":
                from strata.quantizer.lab import turn_stream

                file = turn_stream(file, source)
                source = source_of(file)
            shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
            # What is wrong with it is better said before hours of calibrating.
            machine = None if fit is None else _machine(machine_file, out)
            matrix = None if imatrix is None else split_experts(read_importance(imatrix), shapes)
            text = None
            if calibration is not None:
                from strata.quantizer.lab import check_calibration, measure_importance

                text = calibration_text(file, calibration, context, chunks or _CHUNKS)
                check_calibration(
                    file,
                    source,
                    text,
                    count or 1,
                    memory,
                    propagated=not no_gptq,
                    searched=searched,
                    distilled=distil is not None,
                )
                if matrix is None:
                    matrix = measure_importance(file, text, count or 1, progress)
            facts = Facts.of(source.keys, list(shapes), matrix is not None)
            types = choose_types(chosen, facts, shapes, pure=pure)
            if fold in ("awq", "smoothquant") and text is not None:
                from strata.quantizer.lab import fold_scales

                file, matrix = fold_scales(
                    file, source, fold, types, matrix, text, count or 1, progress
                )
                source = source_of(file)
            if searched:
                from strata.quantizer.fitting import mix_that_fits, types_of
                from strata.quantizer.lab import measured_mix
                from strata.quantizer.lab import write_recipe as write_table

                best_of = measured_mix(
                    file,
                    source,
                    importance=matrix,
                    calibration=text,
                    threads=count or 1,
                    progress=progress,
                )
                if fit is not None and machine is not None:
                    best = mix_that_fits(file, best_of, machine, fit)
                elif bpw is not None:
                    parameters = sum(t.matrix[0] * t.matrix[1] for t in source.tensors.values())
                    best = best_of(int(bpw * parameters / 8))
                else:
                    best = best_of((size or 0) - header_nbytes(source))
                types = types_of(best, file)
                if write_recipe is not None:
                    write_table(write_recipe, best)
            if recipe is not None:
                from strata.quantizer.lab import read_recipe

                types = _known(read_recipe(recipe), shapes, recipe)
            for name in types:
                for pattern, type in rules:
                    if pattern.search(name):
                        types[name] = fitting(type, shapes[name][-1])
                        break
            if already and not quiet:
                remark(
                    f"strata: {path.name} is quantised already ({', '.join(sorted(already))}): "
                    "what that lost stays lost"
                )
            compensation = None
            if text is not None and not no_gptq:
                from strata.quantizer.lab import compensation_of

                compensation = compensation_of(
                    file, source, types, text, count or 1, progress, distilled=distil or 0
                )
            with resumable():
                result = quantise(
                    source,
                    out,
                    types,
                    file_type=chosen.number,
                    importance=matrix,
                    compensation=compensation,
                    memory=memory,
                    threads=count,
                    progress=progress,
                )
    label = (mix and chosen.name) or ("Q4_K_M" if not given else "a mix of its own")
    _tell(model, out, label, result, perf_counter() - started, as_json)


def _tell(
    model: str, out: Path, label: str, result: Written, seconds: float, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "model": model,
                "path": str(out),
                "type": label,
                "weight_bytes": result.nbytes,
                "file_bytes": out.stat().st_size,
                "parameters": result.parameters,
                "bits_per_weight": result.bits,
                "tensors": dict(result.types),
                "seconds": seconds,
            }
        )
        return
    tensors = ", ".join(f"{count} {name}" for name, count in sorted(result.types.items()))
    click.echo(
        f"{out}: {label}, {format_size(result.nbytes)}, {result.bits:.2f} bits a weight "
        f"({tensors}), {seconds:.1f} s"
    )


def _check(out: Path, force: bool, suffix: str) -> None:
    if out.exists() and not force:
        raise UsageError(f"{out} is there already; --force writes over it")
    if out.suffix != suffix:
        raise UsageError(f"{out} is not named like what is written; end it in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a directory")


def _machine(file: Path | None, out: Path) -> Machine:
    from strata.machine.probe import load_machine, probe

    return load_machine(file) if file is not None else probe(out.parent)[0]


def calibration_threads(threads: int | None) -> int:
    """Threads for windows of a text. numpy then takes one for each: how it would divide a product
    among more changes sums, and the bytes of the file must not depend on that. Called before numpy
    is imported."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"
    return threads or usable_cores()


def calibration_text(file: ModelFile, path: Path, context: int, chunks: int | None) -> Calibration:
    """The text of a file as tokens of the model."""
    from strata.cli.engine_options import read_text
    from strata.quantizer.lab import read_calibration

    return read_calibration(file, read_text(path), path.name, context, chunks)


def _known(
    types: dict[str, BlockType], shapes: dict[str, tuple[int, ...]], recipe: Path
) -> dict[str, BlockType]:
    from strata.quantizer.mixes import fitting

    for name in types:
        if name not in shapes:
            raise UsageError(f"{recipe} names {name!r}, a tensor that this model has not")
    return {name: fitting(type.name, shapes[name][-1]) for name, type in types.items()}


def _override(text: str) -> tuple[re.Pattern[str], str]:
    pattern, equals, type = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"--tensor {text!r}: write it PATTERN=TYPE, such as ffn_down=Q6_K")
    from strata.quantizer.quantise import type_named

    try:
        return re.compile(pattern), type_named(type).name
    except re.error as error:
        raise UsageError(f"--tensor {text!r}: {pattern!r} is no regular expression: {error}") from (
            None
        )
