# SPDX-License-Identifier: Apache-2.0
"""A group whose commands are imported when they are called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

__all__ = ["LazyGroup"]


class LazyGroup(click.Group):
    """A click group that knows where its commands are.

    Args:
        commands_at: name to ``module:attribute``.
        arguments: as for :class:`click.Group`.
    """

    def __init__(
        self, *arguments: Any, commands_at: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._at = dict(commands_at or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without importing one."""
        return sorted({*self._at, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported."""
        if cmd_name not in self._at:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._at[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  # our own table
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a word of help for a misspelt one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and error.message.startswith("No such command"):
                text = f"no such command {args[0]!r}; did you mean {near[0]!r}?"
                raise click.UsageError(text, ctx) from error
            raise
