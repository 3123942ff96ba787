"""The `rwkv-engine` command: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys

from rwkv_engine.cli.interrupts import interrupt_exits_at_once


def main() -> None:
    """Runs the command line.

    Exit codes: 0 success, 1 an error that is explained in one line, 2 wrong usage, 130 interrupted.
    """
    with interrupt_exits_at_once():
        from rwkv_engine.cli.run import run  # imported here, so that an interrupt in the meantime shows no traceback
    if code := run():
        sys.exit(code)
