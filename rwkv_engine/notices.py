"""Notices: the messages of the engine that are neither results nor errors, logged by the standard logger `rwkv_engine`.

A notice is a warning if the outcome differs from what a user might expect (no compiled kernels, converted weights, the
hub not reached), or if a call takes unusually long (kernels are compiled), so that Python shows it on standard error by
default. Programs silence or redirect notices by configuring the logger; the command line calls `show_notices`.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

log = logging.getLogger("rwkv_engine")


class _StandardError(logging.Handler):
    """Writes to whatever `sys.stderr` is at that moment, which a progress display may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # a closed standard error must not fail the work that the notice is about
            print(self.format(record), file=sys.stderr, flush=True)


def show_notices() -> None:
    """Writes notices to standard error as `rwkv_engine: MESSAGE`, one line each; a second call changes nothing."""
    if any(isinstance(handler, _StandardError) for handler in log.handlers):
        return
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("rwkv_engine: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
