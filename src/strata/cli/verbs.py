"""The table of verbs and the group that imports a verb's module only when it is called."""

from __future__ import annotations

import difflib
import importlib

import click

from strata import __version__

# verb -> (module that defines `command`, the line `strata --help` shows)
VERBS: dict[str, tuple[str, str]] = {
    "run": ("strata.cli.run", "Answer a prompt, or chat when there is none."),
    "serve": ("strata.cli.serve", "Answer clients of OpenAI, Anthropic and Ollama over HTTP."),
    "embed": ("strata.cli.embed", "Turn texts into embeddings."),
    "rank": ("strata.cli.rank", "Sort texts by how well they answer a question."),
    "perplexity": ("strata.cli.perplexity", "Measure how well a model predicts a text."),
    "tokenize": ("strata.cli.tokenize", "Turn text into token ids."),
    "bench": ("strata.cli.bench", "Measure prefill and decode speed."),
    "pull": ("strata.cli.pull", "Download a model."),
    "list": ("strata.cli.list", "List the models on this machine."),
    "show": ("strata.cli.show", "Describe a model from its header."),
    "plan": ("strata.cli.plan", "Say how a model would run here, and how fast."),
    "probe": ("strata.cli.probe", "Measure what this machine reaches."),
    "synth": ("strata.cli.synth", "Write a model of a published shape with random weights."),
    "rm": ("strata.cli.rm", "Delete a downloaded model."),
}


class LazyGroup(click.Group):
    """A group whose verbs come from VERBS, so that help and completion import none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(VERBS[cmd_name][0]).command
        assert isinstance(command, click.Command)
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
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"strata {__version__}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
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

    MODEL is a built-in name (smollm2), a .gguf file, a Hugging Face directory, or a repository:
    user/repo, user/repo:Q4_K_M, hf.co/user/repo:Q4_K_M.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)
