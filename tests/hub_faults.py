"""What goes wrong on the way to the loopback hub, when a test wants it to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Fault:
    """Strikes requests of one kind.

    Attributes:
        method, path: of the requests; the path is a regular expression that is looked for.
        status, code, message: of the answer, if that is what goes wrong.
        cut: so many bytes of the request are read, then the connection is reset,
        event: before which this is called
        silent: and so many seconds are let pass.
        after: so many requests pass first,
        times: then so many are struck.
    """

    method: str
    path: str
    status: int = 0
    code: str = ""
    message: str = "no"
    cut: int = 0
    event: Callable[[], None] = lambda: None
    silent: float = 0.0
    after: int = 0
    times: int = 1

    def strikes(self, method: str, path: str) -> bool:
        if self.method != method or not re.search(self.path, path):
            return False
        if self.after:
            self.after -= 1
            return False
        if not self.times:
            return False
        self.times -= 1
        return True
