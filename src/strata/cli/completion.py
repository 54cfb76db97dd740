"""``strata completion``: what a shell runs so that Tab completes verbs, options and models."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes commands, options and models in a shell.

    A line for ~/.bashrc is eval "$(strata completion bash)", one for ~/.zshrc the same with zsh.
    For fish: strata completion fish > ~/.config/fish/completions/strata.fish
    """
    from click.shell_completion import get_completion_class

    from strata.cli.verbs import root

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "strata", "_STRATA_COMPLETE").source())
