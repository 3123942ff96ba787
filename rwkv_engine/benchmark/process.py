"""A worker as seen from here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkv_engine.errors import BenchmarkError
from rwkv_engine.progress import Progress

# The worker finds the same packages as this process, wherever that was started.
START = (
    "import json, sys; path, arguments = json.loads(sys.argv[1]); sys.path[:] = path;"
    "from rwkv_engine.benchmark.worker import main; main(*arguments)"
)


@dataclass(frozen=True)
class EngineSpec:
    """One engine to measure.

    Attributes:
        engine: "rwkv_engine", or one of `peers.PEERS`.
        strategy: in the grammar that ours and the `rwkv` package share.
        path: of the model.
    """

    engine: str
    strategy: str
    path: Path

    def __str__(self) -> str:
        return f"{self.engine}, {self.strategy}"


class Worker:
    """A process with one engine in it, which sleeps until it is asked; gone at the end of a `with`."""

    def __init__(self, spec: EngineSpec):
        """Starts to load; the first answer comes when that is done."""
        self.spec = spec
        # What other programs print is only of interest where they fail.
        self._stderr = None if spec.engine == "rwkv_engine" else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps([sys.path, [spec.engine, str(spec.path), spec.strategy]])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, who end it
        )

    def ask(self, do: str, progress: Progress | None = None, **arguments: Any) -> Any:
        """The answer to a command of `Measurements`.

        Args:
            do: its name.
            progress: called with how much of how much is done, if the command tells.
            arguments: of the command.

        Raises:
            BenchmarkError: the engine failed, or its process ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # it says why, below
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise BenchmarkError(f"{self.spec}: {message['error']}")
            if "answer" in message:
                return message["answer"]
            if progress:
                progress(*message["progress"])
        raise BenchmarkError(f"{self.spec}: {self._last_words()}")

    def _last_words(self) -> str:
        code = self._process.wait()
        ended = f"was ended by signal {-code}; was there memory enough?" if code < 0 else f"ended with code {code}"
        if self._stderr:
            self._stderr.seek(0)
            ended += "".join(f": {line.strip()}" for line in self._stderr.readlines()[-1:])
        return ended

    def close(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe:
                with suppress(BrokenPipeError):  # a command that it did not live to read
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
