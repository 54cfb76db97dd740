"""``strata probe``: what this machine reaches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from strata.cli.console import print_json, print_table, remark
from strata.cli.options import json_option, quiet_option
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.plan import Machine


@click.command("probe")
@click.argument("model_or_dir", required=False)
@click.option("--refresh", is_flag=True, help="Measure anew what is known already.")
@quiet_option
@json_option
def command(model_or_dir: str | None, refresh: bool, quiet: bool, as_json: bool) -> None:
    """Measure this machine: cores, memory, kernels, and the disk under MODEL_OR_DIR.

    Takes some seconds and is remembered. It is measured again the next time if the machine was
    busy, or once several runs in a row were much faster or slower than predicted. With --json it
    prints what `strata plan --machine FILE` reads, also on another machine. Without MODEL_OR_DIR
    the disk of Strata's cache is measured.
    """
    from strata.hub.downloads import strata_home
    from strata.hub.references import resolve
    from strata.machine.probe import probe
    from strata.plan import to_json

    path = strata_home()
    if model_or_dir is not None:
        given = Path(model_or_dir).expanduser()
        path = given if given.is_dir() else resolve(model_or_dir, download=False)
    machine, known = probe(
        path,
        refresh=refresh,
        noisy_again=True,
        progress=None if quiet or as_json else lambda what: remark(f"measuring: {what}"),
    )
    if machine.noisy and not quiet:
        remark(
            f"the machine was busy: others took {machine.busy:.0%} of its processors, and reading "
            f"memory varied by {machine.spread:.0%}. What is predicted may be too slow; say "
            "`strata probe` again when it is quiet"
        )
    if as_json:
        print_json(to_json(machine))
        return
    _print(machine)
    if known:
        remark("measured before; --refresh measures again")


def _print(m: Machine) -> None:
    caches = ", ".join(f"L{c.level} {format_size(c.nbytes)}" for c in m.caches)
    click.echo(f"{m.cpu}: {m.cores} cores, {m.isa}; caches {caches or 'unknown'}")
    free = format_size(m.memory_available)
    click.echo(f"memory: {format_size(m.memory_total)}, of which {free} may be taken")
    reads = ", ".join(f"{r.bytes_s / 1e9:.1f} ({r.threads})" for r in m.memory_read)
    click.echo(f"memory reads, GB/s (threads): {reads}")
    a = m.attention
    click.echo(
        f"attention: {a.decode_bytes_s / 1e9:.1f} GB/s of KV, {a.prefill_ops_s / 1e9:.0f} GOP/s; "
        f"a call takes {m.step_overhead_s * 1e6:.0f} us"
    )
    click.echo()
    print_table(
        ("FORMAT", "DECODE GB/s", "PREFILL GOP/s", "PACK GB/s"),
        [
            (
                k.format,
                f"{k.decode_bytes_s / 1e9:.1f}",
                f"{k.prefill_ops_s / 1e9:.0f}",
                f"{k.pack_bytes_s / 1e9:.1f}",
            )
            for k in m.kernels
        ],
    )
    click.echo()
    depths = sorted({d.depth for d in m.disk})
    found = {(d.mode, d.request_bytes, d.depth): d.bytes_s for d in m.disk}
    print_table(
        ("DISK, GB/s", *(f"{depth} AT ONCE" for depth in depths)),
        [
            (
                f"{mode} {request >> 10} KiB",
                *(
                    f"{found[mode, request, depth] / 1e9:.2f}"
                    if (mode, request, depth) in found
                    else "-"
                    for depth in depths
                ),
            )
            for mode, request in dict.fromkeys((d.mode, d.request_bytes) for d in m.disk)
        ],
    )
    click.echo(f"a small read takes {m.read_latency_s * 1e6:.0f} us")
