"""The tables and the JSON of ``strata bench --ops``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strata.cli.console import print_table

if TYPE_CHECKING:
    from strata.llm import LLM
    from strata.report.op_times import OpTime, StepTimes


def op_report(llm: LLM, *, prompt: int, depth: int, repeat: int) -> dict[str, Any]:
    """Times of Ops in prefill (None without a prompt) and decode, the machine's limits, and what a
    step pays besides Ops. The backend must measure its nodes."""
    from strata.machine.roofline import measure_overhead, measure_roofline
    from strata.report.op_times import time_ops

    assert llm.threads is not None
    assert llm.isa is not None
    roofline = measure_roofline(llm.threads, llm.isa)
    prefill, decode = time_ops(llm.engine, roofline, prompt=prompt, depth=depth, repeat=repeat)
    overhead = measure_overhead(llm.threads, llm.isa)
    return {
        "limits": {
            "read_gb_s": roofline.read_bytes_s / 1e9,
            "int8_gops_s": roofline.int8_ops_s / 1e9,
            "bf16_gflops_s": roofline.bf16_ops_s / 1e9,
            "f32_gflops_s": roofline.f32_ops_s / 1e9,
        },
        "overhead": {"call_s": overhead.call_s, "node_s": overhead.node_s},
        "prefill": None if prefill is None else _step(prefill),
        "decode": _step(decode),
    }


def _step(times: StepTimes) -> dict[str, Any]:
    return {
        "tokens": times.tokens,
        "depth": times.depth,
        "step_s": times.step_s,
        "ops_s": times.ops_s,
        "explained": times.ops_s / times.step_s,
        "outside_s": times.step_s - times.ops_s,
        "calls": times.calls,
        "nodes": times.nodes,
        "ops": [_op(op, times.step_s) for op in times.ops],
    }


def _op(op: OpTime, step_s: float) -> dict[str, Any]:
    seconds = max(op.seconds, 1e-12)
    return {
        "name": op.name,
        "kind": op.kind,
        "head": op.head,
        "nodes": op.nodes,
        "seconds": op.seconds,
        "share_of_step": op.seconds / step_s,
        "bytes": op.bytes,
        "gb_s": op.bytes / seconds / 1e9,
        "flops": op.flops,
        "gflops_s": op.flops / seconds / 1e9,
        "roofline": op.limit_s / seconds,
    }


def print_op_report(report: dict[str, Any]) -> None:
    """Print it as tables."""
    for name in ("prefill", "decode"):
        step = report[name]
        if step is None:
            continue
        click.echo()
        title = f"{name.upper()} OF {step['tokens']} AT {step['depth']}"
        header = (title, "NODES", "MS", "STEP", "MB", "GB/S", "GFLOP/S", "ROOFLINE")
        print_table(header, [_cells(op) for op in step["ops"]])
        click.echo(
            f"{1e3 * step['step_s']:.3f} ms a step, {100 * step['explained']:.1f} % of it in Ops; "
            f"outside {1e6 * step['outside_s']:.0f} us over {step['calls']} native calls"
        )
    limits, overhead = report["limits"], report["overhead"]
    click.echo(
        f"\nroofline: reads {limits['read_gb_s']:.1f} GB/s, int8 {limits['int8_gops_s']:.0f} GOPS, "
        f"bf16 {limits['bf16_gflops_s']:.0f} and f32 {limits['f32_gflops_s']:.0f} GFLOPS; an empty "
        f"call takes {1e6 * overhead['call_s']:.1f} us, a barrier {1e6 * overhead['node_s']:.2f} us"
    )


def _cells(op: dict[str, Any]) -> tuple[str, ...]:
    return (
        ("head: " if op["head"] else "") + op["name"],
        str(op["nodes"]),
        f"{1e3 * op['seconds']:.3f}",
        f"{100 * op['share_of_step']:.1f} %",
        f"{op['bytes'] / 1e6:.2f}",
        f"{op['gb_s']:.1f}",
        f"{op['gflops_s']:.0f}",
        f"{100 * op['roofline']:.0f} %",
    )
