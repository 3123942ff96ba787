"""The `rwkv-engine` command: text on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys

import click

from rwkv_engine._version import __version__
from rwkv_engine.cli.bench import bench_command
from rwkv_engine.cli.chat import chat
from rwkv_engine.cli.convert import convert
from rwkv_engine.cli.embed import embed
from rwkv_engine.cli.evaluate import evaluate_text
from rwkv_engine.cli.generate import generate
from rwkv_engine.cli.info import info
from rwkv_engine.cli.pack import pack
from rwkv_engine.cli.quantize import quantize
from rwkv_engine.cli.verify import verify
from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import show_notices


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def commands() -> None:
    """The engine for RWKV-4 language models."""


commands.add_command(bench_command)
commands.add_command(chat)
commands.add_command(convert)
commands.add_command(embed)
commands.add_command(evaluate_text)
commands.add_command(generate)
commands.add_command(info)
commands.add_command(pack)
commands.add_command(quantize)
commands.add_command(verify)


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 an error of ours, 2 wrong usage, 130 interrupted."""
    show_notices()
    try:
        commands.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RwkvError as error:
        click.echo(f"rwkv-engine: error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone; Python would complain once more when closing it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
