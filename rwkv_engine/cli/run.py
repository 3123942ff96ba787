"""Runs a command and turns what it raises into a message and an exit code."""

from __future__ import annotations

import sys

import click

from rwkv_engine.cli.group import commands
from rwkv_engine.cli.interrupts import INTERRUPTED
from rwkv_engine.cli.streams import standard_streams
from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import show_notices


def run() -> int:
    """Runs the command in `sys.argv`; returns the exit code, see `main`."""
    with standard_streams():
        show_notices()
        try:
            commands.main(standalone_mode=False)
            sys.stdout.flush()
        except (click.exceptions.Abort, KeyboardInterrupt):
            return INTERRUPTED
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except RwkvError as error:
            click.echo(f"rwkv-engine: error: {error}", err=True)
            return 1
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError
            if not _is_out_of_memory(error):
                raise
            click.echo("rwkv-engine: error: not enough memory; close other programs, or raise ulimit -v", err=True)
            return 1
        except BrokenPipeError:  # the program that read our output has ended, so there is nobody to tell
            return 1
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):  # there may not even be enough to import what follows
        return True
    from rwkv_engine.checkpoints.memory import is_out_of_memory  # imports torch

    return is_out_of_memory(error)
