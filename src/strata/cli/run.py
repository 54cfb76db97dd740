"""``strata run``: answer one prompt, or chat."""

from __future__ import annotations

import os
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strata.backends.registry import DEFAULT
from strata.cli import explain_report
from strata.cli.answer import print_answer, print_stats, why_cut
from strata.cli.console import print_json, remark
from strata.cli.engine_options import (
    activations_option,
    ahead_option,
    backend_options,
    draft_options,
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
    verbose_option,
)
from strata.cli.sampling_options import (
    Constraint,
    grammar_options,
    sampling_options,
    template_text,
)
from strata.errors import UsageError
from strata.machine.constants import DEFAULT_CONTEXT

if TYPE_CHECKING:
    from strata.answers import Output
    from strata.backends.settings import ActivationsName
    from strata.cli.chat import WhenFull
    from strata.decode import SamplingParams
    from strata.engine.texts import TextWorkload
    from strata.llm import LLM
    from strata.memory import Ledger
    from strata.plan import Workload
    from strata.text import Tokenizer


@click.command("run")
@model_argument
@click.argument("prompt", nargs=-1)
@click.option("-p", "--prompt", "given", help="The prompt, given as an option.")
@click.option(
    "-f",
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text file to put before the prompt.",
)
@click.option("--system", help="A system prompt: instructions before the conversation.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a chat template.")
@sampling_options
@grammar_options
@click.option(
    "--chat-template",
    help="A Jinja chat template, a file with one, or llama.cpp's name of one, such as chatml, to "
    "use instead of the model's.",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=2),
    help="Tokens of prompt and answer together (default: 4096, or the model's limit if lower).",
)
@click.option(
    "--when-full",
    type=click.Choice(["drop", "refuse"]),
    default="drop",
    show_default=True,
    help="When a chat has filled the context: drop the oldest turns, or refuse to go on.",
)
@backend_options
@activations_option
@kv_store_options
@ahead_option
@draft_options
@memory_option
@explain_option
@click.option("--stats", is_flag=True, help="Print speeds and peak memory on standard error.")
@click.option(
    "--quantize",
    metavar="TYPE",
    help="Run a float model in smaller types, such as Q4_K_M: with the bits of the file that "
    "strata quantize writes, which is kept. What that costs: strata quality.",
)
@verbose_option
@quiet_option
@json_option
def command(
    model: str,
    prompt: tuple[str, ...],
    given: str | None,
    file: Path | None,
    system: str | None,
    raw: bool,
    when_full: WhenFull,
    constraint: Constraint | None,
    chat_template: str | None,
    sampling: dict[str, Any],
    context: int | None,
    backend: str,
    threads: int | None,
    kv_type: str | None,
    activations: ActivationsName,
    quality: str | None,
    kv_window: str | None,
    kv_read: int,
    kv_store: Path | None,
    kv_store_size: int,
    kv_disk: Path | None,
    draft: str,
    experts_ahead: int,
    draft_model: str | None,
    memory: int | None,
    explain: bool,
    stats: bool,
    quantize: str | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT, standard input, or both; chat when there is neither.

    What comes on standard input stands before the prompt: `strata run MODEL "Summarise this." <
    FILE`. The answer is the same every time unless the model's defaults or --temperature say
    that it is sampled.
    """
    if given is not None:
        prompt = (given, *prompt)
    asks = _question(prompt, file)
    if asks is None and as_json:
        raise UsageError("--json needs a prompt, as an argument or on standard input")
    if raw and system is not None:
        raise UsageError("--system is for the chat template, which --raw leaves out")

    if backend == DEFAULT and quantize is None:
        # Nothing is multiplied by numpy, whose threads would start and spin for a tenth of a second
        # on the cores that are to load and compute.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from strata.decode import SamplingParams

    # Refused before anything is loaded.
    params = SamplingParams(**sampling)
    asked = None if asks is None else _Asked(asks, system, raw, context)

    with open_llm(
        model if quantize is None else _smaller(model, quantize, memory, threads, quiet),
        backend=backend,
        threads=threads,
        kv_type=kv_type,
        activations=activations,
        quality=quality,
        kv_window=kv_window,
        kv_read=kv_read,
        kv_store=kv_store,
        kv_store_size=kv_store_size,
        kv_disk=kv_disk,
        draft=draft,
        experts_ahead=experts_ahead,
        draft_model=draft_model,
        context=context,
        quiet=quiet,
        memory=memory,
        workload=None if asked is None else asked.workload(params),
        planned=explain,
        foretold=True,
        verbose=verbose,
        chat_template=None if chat_template is None else template_text(chat_template),
    ) as llm:
        params = llm.sampling_defaults.with_said(sampling)
        if constraint is not None:
            params = replace(params, grammar=llm.compile(**constraint))
        if not raw and not llm.tokenizer.chat_templates:
            if system is not None:
                raise UsageError("this model has no chat template, which --system needs")
            if not quiet:
                remark("this model has no chat template: prompts are continued as they are")
            raw = True
        if asked is None:
            from strata.cli.chat import chat

            chat(llm, params, system=system, raw=raw, stats=stats, when_full=when_full)
            return
        ids = asked.encode(llm.tokenizer, llm.ledger).tolist()
        chunks = llm.generate([ids], params, stream=True, continuing=raw)
        answer = print_answer(chunks, silent=as_json)
        if answer.finish_reason == "length" and not quiet and not as_json:
            remark(why_cut(llm, params))
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


def _question(words: tuple[str, ...], file: Path | None) -> str | None:
    """What stands in a file and on standard input, and after it the prompt; None where somebody is
    to chat."""
    before = "" if file is None else read_text(file).rstrip("\r\n")
    if file is not None and not words:
        if not before.strip():
            raise UsageError(f"{file} is empty")
        return before
    prompt = None if words in ((), ("-",)) else " ".join(words)
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty")
    if sys.stdin.isatty() and (prompt is not None or not words):
        return _joined(before, prompt)
    given = read_text(None).removesuffix("\n").removesuffix("\r")
    if prompt is None:
        if not given.strip():
            raise UsageError("the prompt is empty")
        return _joined(before, given)
    return _joined(before, given, prompt)


def _joined(*texts: str | None) -> str | None:
    some = [text for text in texts if text is not None and text.strip()]
    return "\n\n".join(some) if some else None


class _Asked:
    """A prompt, encoded once: where a Plan is made, before there are weights beside it."""

    def __init__(self, prompt: str, system: str | None, raw: bool, context: int | None) -> None:
        self._prompt, self._system, self._raw = prompt, system, raw
        self._most = context or DEFAULT_CONTEXT
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
        """Its token ids; UsageError, before they are all made, if no context has room for them."""
        if self._ids is None:
            ids = self._encode(tokenizer, ledger)
            if len(ids) >= self._most:
                raise UsageError(
                    f"the prompt has {self._most} tokens or more and leaves no room in a context "
                    f"of {self._most}; shorten it or raise the context"
                )
            self._ids = ids
        return self._ids

    def _encode(self, tokenizer: Tokenizer, ledger: Ledger) -> array[int]:
        from strata.engine.texts import chat_ids, prompt_ids

        if self._raw or not tokenizer.chat_templates:
            return prompt_ids(tokenizer, self._prompt, ledger, self._most)
        messages = [{"role": "user", "content": self._prompt}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        return chat_ids(tokenizer, messages, ledger, most=self._most)


def _workload(tokens: int, params: SamplingParams) -> Workload:
    """Of a prompt of so many tokens, and as long an answer as may come, or a usual one."""
    from strata.plan import Workload

    # A Plan has at least a token to make; without one the prompt is refused later, by its name.
    prompt_tokens = max(tokens, 1)
    if params.max_tokens is None:
        return Workload(prompt_tokens)
    return Workload(prompt_tokens, answer_tokens=params.max_tokens)


def _smaller(model: str, mix: str, memory: int | None, threads: int | None, quiet: bool) -> str:
    """The path of a model's copy in smaller types."""
    from strata.cli.console import progress_bars
    from strata.hub.references import resolve
    from strata.quantizer.copies import quantised_copy

    with progress_bars(silent=quiet) as progress:
        path = resolve(model, progress=progress)
        return str(quantised_copy(path, mix, memory=memory, threads=threads, progress=progress))


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
        "kv_type": llm.runtime.kv_type.name,
        "kv_choice": llm.runtime.kv_choice,
    }
