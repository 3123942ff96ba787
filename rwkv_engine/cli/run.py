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
        except BrokenPipeError:  # the program that read our output has ended, so there is nobody to tell
            return 1
    return 0
