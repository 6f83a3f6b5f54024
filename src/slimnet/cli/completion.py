# SPDX-License-Identifier: Apache-2.0
"""``slimnet completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command(
    epilog="""\b
To have it always:
  bash   slimnet completion bash > /etc/bash_completion.d/slimnet
  zsh    slimnet completion zsh > /usr/share/zsh/site-functions/_slimnet
  fish   slimnet completion fish > ~/.config/fish/completions/slimnet.fish

\b
For this shell only:
  eval "$(slimnet completion bash)" """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete slimnet's words.

    Commands, options, and the names that the agent knows.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # one of the choices
    root = context.find_root().command
    script = kind(root, {}, "slimnet", "_SLIMNET_COMPLETE")
    click.echo(script.source_template % script.source_vars())
