"""``strata run``: answer one prompt, or chat."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strata.cli import explain_report
from strata.cli.answer import print_answer, print_stats
from strata.cli.console import print_json, remark
from strata.cli.engine_options import (
    backend_options,
    kv_store_options,
    memory_report,
    open_llm,
    read_text,
)
from strata.cli.options import (
    explain_option,
    json_option,
    memory_option,
    model_argument,
    quiet_option,
)
from strata.cli.sampling_options import sampling_options
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.decode import SamplingParams
    from strata.engine.texts import TextWorkload
    from strata.llm import LLM, Output
    from strata.memory import Ledger
    from strata.plan import Workload
    from strata.text import Tokenizer


@click.command("run")
@model_argument
@click.argument("prompt", required=False)
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a chat template.")
@sampling_options
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=2),
    help="Positions for prompt and answer (default: 4096, or the model's if it has fewer).",
)
@backend_options
@kv_store_options
@memory_option
@explain_option
@click.option("--stats", is_flag=True, help="Print speeds and peak memory on standard error.")
@quiet_option
@json_option
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    sampling: dict[str, Any],
    context: int | None,
    backend: str,
    threads: int | None,
    kv_type: str | None,
    kv_store: Path | None,
    kv_store_size: int,
    memory: int | None,
    explain: bool,
    stats: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT, or what comes on standard input (also for -), or chat when there is neither.

    The answer does not change from run to run unless --temperature is above 0.
    """
    chatting = prompt is None and sys.stdin.isatty()
    if chatting and as_json:
        raise UsageError("--json needs a prompt, as an argument or on standard input")
    if raw and system is not None:
        raise UsageError("--system is for the chat template, which --raw leaves out")
    if prompt is None and not chatting:
        prompt = "-"
    if prompt == "-":
        prompt = read_text(None).removesuffix("\n").removesuffix("\r")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty")

    from strata.decode import SamplingParams

    params = SamplingParams(**sampling)

    asked = None if prompt is None else _Asked(prompt, system, raw)

    with open_llm(
        model,
        backend=backend,
        threads=threads,
        kv_type=kv_type,
        kv_store=kv_store,
        kv_store_size=kv_store_size,
        context=context,
        quiet=quiet,
        memory=memory,
        workload=None if asked is None else asked.workload(params),
        planned=explain,
    ) as llm:
        if not raw and not llm.tokenizer.chat_templates:
            if system is not None:
                raise UsageError("this model has no chat template, which --system needs")
            if not quiet:
                remark("this model has no chat template: prompts are continued as they are")
            raw = True
        if asked is None:
            from strata.cli.chat import chat

            chat(llm, params, system=system, raw=raw, stats=stats)
            return
        ids = asked.encode(llm.tokenizer, llm.ledger).tolist()
        chunks = llm.generate([ids], params, stream=True, continuing=raw)
        answer = print_answer(chunks, silent=as_json)
        if as_json:
            report = _as_json(model, llm, answer)
            if explain:
                report["explanation"] = explain_report.as_json(llm.explain())
            print_json(report)
        if stats:
            print_stats(llm, answer)
        if explain and not as_json:
            for line in explain_report.lines(llm.explain()):
                remark(line)


class _Asked:
    """A prompt, encoded once: where a Plan is made, before there are weights beside it."""

    def __init__(self, prompt: str, system: str | None, raw: bool) -> None:
        self._prompt, self._system, self._raw = prompt, system, raw
        self._ids: array[int] | None = None

    def workload(self, params: SamplingParams) -> TextWorkload:
        """What the Plan is made for: this prompt, and as long an answer as may come."""
        from strata.engine.texts import TextWorkload, most_tokens

        text = self._prompt + (self._system or "")
        most = most_tokens(len(text.encode("utf-8", "replace")))
        return TextWorkload(
            _workload(most, params),
            lambda tokenizer, ledger: _workload(len(self.encode(tokenizer, ledger)), params),
        )

    def encode(self, tokenizer: Tokenizer, ledger: Ledger) -> array[int]:
        """Its token ids."""
        if self._ids is None:
            self._ids = self._encode(tokenizer, ledger)
        return self._ids

    def _encode(self, tokenizer: Tokenizer, ledger: Ledger) -> array[int]:
        from strata.engine.texts import chat_ids, prompt_ids

        if self._raw or not tokenizer.chat_templates:
            return prompt_ids(tokenizer, self._prompt, ledger)
        messages = [{"role": "user", "content": self._prompt}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        return chat_ids(tokenizer, messages, ledger)


def _workload(tokens: int, params: SamplingParams) -> Workload:
    """Of a prompt of so many tokens, and as long an answer as may come, or a usual one."""
    from strata.plan import Workload

    # A Plan has at least a token to make; without one the prompt is refused later, by its name.
    prompt_tokens = max(tokens, 1)
    if params.max_tokens is None:
        return Workload(prompt_tokens)
    return Workload(prompt_tokens, answer_tokens=params.max_tokens)


def _as_json(model: str, llm: LLM, answer: Output) -> dict[str, Any]:
    timings = answer.timings
    return {
        "model": model,
        "text": answer.text,
        "tokens": list(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "timings": {
            "load_s": llm.load_s,
            "prefill_tok_s": timings.prefill_tok_s,
            "decode_tok_s": timings.decode_tok_s,
            "ttft_s": timings.ttft_s,
        },
        "memory": memory_report(),
        "backend": llm.backend,
        "threads": llm.threads,
        "isa": llm.isa,
        "context": llm.context,
    }
