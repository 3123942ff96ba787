"""Work that would hold up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rwkv_engine.native.workers import end_workers

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def in_thread(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """What a function returns, which runs in a thread.

    The thread is kept for further work, so its OpenMP workers would stay too, and slow down the scheduler's.
    """

    def run() -> Result:
        try:
            return function(*arguments, **named)
        finally:
            end_workers()

    return await asyncio.to_thread(run)
