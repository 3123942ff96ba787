"""The process of one engine, seen from its parent."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import TracebackType
from typing import Any

from rwkv_engine.benchmark.lineup import EngineSpec
from rwkv_engine.errors import BenchmarkError
from rwkv_engine.progress import Progress

# The child gets this process's module path, so that it finds the same packages wherever it was started.
START = (
    "import json, sys; path, arguments = json.loads(sys.argv[1]); sys.path[:] = path;"
    "from rwkv_engine.benchmark.worker import main; main(*arguments)"
)


class Worker:
    """A process with one engine, which sleeps until it is asked; the end of a `with` block ends it."""

    def __init__(self, spec: EngineSpec):
        """Starts the process, which loads the model; the first answer comes when that is done."""
        self.spec = spec
        # The output of other programs is shown only if they fail.
        self._stderr = None if spec.engine == "rwkv_engine" else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps([sys.path, [spec.engine, str(spec.path), str(spec.strategy)]])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the child
        )

    def ask(self, do: str, progress: Progress | None = None, **arguments: Any) -> Any:
        """The answer to a command of `Measurements`.

        Args:
            do: the command's name.
            progress: called with the progress of commands that report it.
            arguments: the command's arguments.

        Raises:
            BenchmarkError: the engine failed, or its process ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # the reason is found below
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
        ended = f"was ended by signal {-code}; was there enough memory?" if code < 0 else f"ended with code {code}"
        if self._stderr:
            self._stderr.seek(0)
            ended += "".join(f": {line.strip()}" for line in self._stderr.readlines()[-1:])
        return ended

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe:
                with suppress(BrokenPipeError):  # a command that the process did not read any more
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
