"""The group of commands. A command's module is imported when the command is used, for it imports torch."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

import click

from rwkv_engine._version import __version__
from rwkv_engine.cli.interrupts import interrupt_exits_at_once

# For each command its module, its name there, and the line that `rwkv-engine --help` shows.
COMMANDS = {
    "bench": ("bench", "bench_command", "Measures speed and memory use of a model."),
    "chat": ("chat", "chat", "Holds a conversation with a model."),
    "convert": ("convert", "convert", "Converts a model to another file format."),
    "embed": ("embed", "embed", "Computes an embedding of each line of a file."),
    "eval": ("evaluate", "evaluate_text", "Measures how well a model predicts a text."),
    "generate": ("generate", "generate", "Continues a text."),
    "info": ("info", "info", "Shows this installation, or a model."),
    "pack": ("pack", "pack", "Writes a file that loads by memory mapping."),
    "quantize": ("quantize", "quantize", "Writes a packed file with int8 or int4 weights."),
    "serve": ("serve", "serve", "Serves a model over HTTP, with OpenAI's protocol."),
    "verify": ("verify", "verify", "Checks a model, and compares it with other programs."),
}


class _LazyGroup(click.Group):
    """Knows the names of its commands, and imports a command when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        with interrupt_exits_at_once():
            command: click.Command = getattr(import_module(f"rwkv_engine.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As the inherited one, and an unknown name is reported with the command that was probably meant."""
        name = args[0]
        near = get_close_matches(name, COMMANDS, n=1)
        if near and name not in COMMANDS:
            context.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rwkv-engine")
def commands() -> None:
    """Runs RWKV language models on CPUs and GPUs.

    To begin: rwkv-engine generate "Once upon a time". Options of a command: rwkv-engine generate --help.

    Results go to standard output; notices, progress and errors go to standard error.
    """
