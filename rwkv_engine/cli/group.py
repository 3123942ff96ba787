"""The group of commands. A command's module is imported when the command is used, for it imports torch."""

from __future__ import annotations

from importlib import import_module

import click

from rwkv_engine._version import __version__
from rwkv_engine.cli.interrupts import interrupt_exits_at_once

# For each command its module, its name there, and the line that `rwkv-engine --help` shows.
COMMANDS = {
    "bench": ("bench", "bench_command", "Measures how fast models and strategies run."),
    "chat": ("chat", "chat", "Starts a conversation with a model."),
    "convert": ("convert", "convert", "Converts a model to another file format."),
    "embed": ("embed", "embed", "Computes a vector for each line of a file."),
    "eval": ("evaluate", "evaluate_text", "Measures how well a model predicts a text."),
    "generate": ("generate", "generate", "Continues a text."),
    "info": ("info", "info", "Describes this installation, or a model."),
    "pack": ("pack", "pack", "Packs a model into a file that loads at once."),
    "quantize": ("quantize", "quantize", "Packs a model with 8-bit weights."),
    "verify": ("verify", "verify", "Checks that a model is sound."),
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

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rwkv-engine")
def commands() -> None:
    """The engine for RWKV-4 language models.

    Results go to standard output, everything else to standard error. rwkv-engine COMMAND --help describes a command.
    """
