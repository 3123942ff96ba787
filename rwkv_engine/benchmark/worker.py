"""The process of one engine: loads it, then answers commands, one JSON object a line, until there are no more."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from rwkv_engine.benchmark.measurements import Measurements
from rwkv_engine.benchmark.memory import MemoryWatch
from rwkv_engine.benchmark.subject import Ours, Subject
from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import show_notices
from rwkv_engine.progress import Progress


def main(engine: str, path: str, strategy: str) -> None:
    """Answers are `{"answer": ...}`, `{"error": "one line"}`, and before these any number of `{"progress": [m, n]}`."""
    answers = os.fdopen(os.dup(1), "w")
    show_notices()
    os.dup2(2, 1)  # whatever a program prints is no answer

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def progress(done: int, total: int) -> None:
        say(progress=[done, total])

    try:
        watch = MemoryWatch()
        watch.start()
        measurements = Measurements(make(engine, Path(path), strategy, progress), watch)
        watch.stop()
        serve(sys.stdin, measurements, say, progress)
    except RwkvError as error:
        say(error=str(error))
    except BrokenPipeError:
        pass  # nobody asks any more
    except Exception as error:  # another program may raise anything
        say(error=f"{type(error).__name__}: {error}".partition("\n")[0])


def serve(commands: TextIO, measurements: Measurements, say: Any, progress: Progress) -> None:
    """Answers every line of `commands`."""
    for line in commands:
        arguments = json.loads(line)
        say(answer=measurements.answer(arguments.pop("do"), arguments, progress))


def make(engine: str, path: Path, strategy: str, progress: Progress) -> Subject:
    """The subject of a name: "rwkv_engine", or one of `peers.PEERS`."""
    if engine == "rwkv_engine":
        return Ours(path, strategy, progress)
    from rwkv_engine.benchmark import peers  # importing these is not part of how we start

    return peers.RwkvPackage(path, strategy) if engine == "rwkv" else peers.Transformers(path, strategy)
