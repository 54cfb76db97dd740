"""The table of verbs and the group that imports a verb's module only when it is called."""

from __future__ import annotations

import difflib
import importlib
import shutil
from collections.abc import Iterable
from typing import Any

import click

from strata import __version__
from strata.cli.console import remark
from strata.cli.foreign_flags import translated
from strata.cli.settings import defaults as read_settings
from strata.cli.settings import option_names

ORIGINS = "strata.origins"
"""Where values that are not of the command line were said: in the ``meta`` of a context."""

# verb -> (module that defines `command`, the line `strata --help` shows)
VERBS: dict[str, tuple[str, str]] = {
    "run": ("strata.cli.run", "Answer a prompt, or chat if there is none."),
    "serve": ("strata.cli.serve", "Answer clients of OpenAI, Anthropic and Ollama over HTTP."),
    "ps": ("strata.cli.ps", "List the models that a running server has loaded."),
    "stop": ("strata.cli.stop", "Have a running server unload a model."),
    "batch": ("strata.cli.batch", "Answer a file of requests, in OpenAI's batch format."),
    "embed": ("strata.cli.embed", "Turn texts into embeddings."),
    "rank": ("strata.cli.rank", "Sort texts by how well they answer a question."),
    "perplexity": ("strata.cli.perplexity", "Measure how well a model predicts a text."),
    "quality": ("strata.cli.quality", "Measure what models lost, and what their bytes buy."),
    "routes": ("strata.cli.routes", "Record which experts a text chooses."),
    "tokenize": ("strata.cli.tokenize", "Turn text into token ids."),
    "bench": ("strata.cli.bench", "Measure prefill and decode speed."),
    "pull": ("strata.cli.pull", "Download a model."),
    "list": ("strata.cli.list", "List the models on this machine."),
    "show": ("strata.cli.show", "Describe a model from its header."),
    "plan": ("strata.cli.plan", "Show how a model would run here, and how fast."),
    "probe": ("strata.cli.probe", "Measure how fast this machine is."),
    "synth": ("strata.cli.synth", "Write a model of a published shape with random weights."),
    "imatrix": ("strata.cli.imatrix", "Measure which weights matter, by a text."),
    "quantize": ("strata.cli.quantize", "Write a model in smaller types."),
    "store": ("strata.cli.store", "List, pin, move and delete what is kept of KV on disk."),
    "completion": ("strata.cli.completion", "Complete commands and models in a shell."),
    "rm": ("strata.cli.rm", "Delete a downloaded model."),
}


class _Formatter(click.HelpFormatter):
    """Help that keeps to narrow terminals, too."""

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        super().write_dl(list(rows), min(col_max, self.width // 3), col_spacing)


class _Context(click.Context):
    """The context of every verb: its width is that of the terminal, to 100 columns."""

    formatter_class = _Formatter

    def __init__(self, command: click.Command, *args: Any, **settings: Any) -> None:
        super().__init__(command, *args, **settings)
        self.terminal_width = min(100, shutil.get_terminal_size().columns)
        if command is not root and not self.resilient_parsing:
            self.default_map, self.meta[ORIGINS] = read_settings(
                command.name or "", command.params, _options_of_all
            )


class LazyGroup(click.Group):
    """A group whose verbs come from VERBS, so that help and completion import none of them."""

    context_class = _Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(VERBS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        command.context_class = _Context
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            near = difflib.get_close_matches(verb, VERBS, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"there is no command {verb!r}{hint}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or ctx.resilient_parsing:
            return name, command, rest
        declared = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        rest, without = translated(rest, declared)
        for flag, why in without.items():
            remark(f"{flag} has no effect: {why}")
        return name, command, rest


def _options_of_all() -> dict[str, set[str]]:
    """Long names of the options of every verb."""
    context = click.Context(root, resilient_parsing=True)
    commands = {verb: root.get_command(context, verb) for verb in VERBS}
    return {verb: set(option_names(c.params)) for verb, c in commands.items() if c is not None}


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"strata {__version__}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def root(context: click.Context) -> None:
    """Run large language models inside the memory you have.

    MODEL is a name (smollm2, llama3.2:1b), a .gguf file, a Hugging Face directory, or a repository:
    user/repo, user/repo:Q4_K_M, hf.co/user/repo:Q4_K_M.

    An option such as --max-tokens of run can also be set as STRATA_RUN_MAX_TOKENS or
    STRATA_MAX_TOKENS, and in ~/.config/strata/config.toml.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)
