"""A conversation: turns, each with the state after it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Unpack

from rwkv_engine.core import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import TextStream
from rwkv_engine.generation.params import SamplingOptions
from rwkv_engine.pipeline import RWKV
from rwkv_engine.text.templates import TEMPLATES, Template


@dataclass(frozen=True)
class Turn:
    """One message and its reply.

    Attributes:
        prompt: the message as the model read it.
        reply: what it wrote, as it wrote it.
        sample: which of several replies to this message it is.
        state: after the reply.
    """

    prompt: str
    reply: str
    sample: int
    state: State


class Chat:
    """Keeps the state of a conversation with a model.

    Attributes:
        template: the format of the turns.
        turns: since the beginning, or since what was loaded.
    """

    def __init__(self, model: RWKV, template: Template, max_new_tokens: int = 500, **sampling: Unpack[SamplingOptions]):
        """`sampling`: as for `RWKV.stream`; the template's stop strings come on top."""
        self.model = model
        self.template = template
        self.turns: list[Turn] = []
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._stop = tuple(sampling.pop("stop", ()))
        self._before: State | None = None  # what the first turn continues
        self._text_before = ""
        self.reset()

    def reset(self) -> None:
        """Back to the beginning."""
        self.turns, self._before, self._text_before = [], None, ""

    @property
    def state(self) -> State | None:
        """After the last reply; None before the first message."""
        return self.turns[-1].state if self.turns else self._before

    @property
    def text(self) -> str:
        """All that the model has read and written."""
        return self._text_before + "".join(turn.prompt + turn.reply for turn in self.turns)

    def reply(self, message: str, input: str = "") -> Generator[str, None, None]:
        """Yields the reply piece by piece; a reader who asks for no more ends it there.

        Args:
            message: what the user says.
            input: what the message is about, for templates that have a place for it.

        Raises:
            RequestError: no message, or an input the template has no place for.
        """
        if not self.template.clean(message):
            raise RequestError("the message is empty, expected some text")
        begin = self.template.preamble if self.state is None else self.template.between
        return self._answer(self.turns, begin + self.template.render(message, input), sample=0)

    def retry(self) -> Generator[str, None, None]:
        """Another reply to the last message instead of the one it got.

        Raises:
            RequestError: there is no message.
        """
        self._require_turn()
        last = self.turns[-1]
        return self._answer(self.turns[:-1], last.prompt, last.sample + 1)

    def undo(self) -> None:
        """Takes the last message and its reply back.

        Raises:
            RequestError: there is none.
        """
        self._require_turn()
        self.turns = self.turns[:-1]

    def _require_turn(self) -> None:
        if not self.turns:
            raise RequestError("nothing was said since the beginning, or since what was loaded")

    def _answer(self, before: list[Turn], prompt: str, sample: int) -> Generator[str, None, None]:
        options = SamplingOptions(**{**self._sampling, "stop": (*self.template.stop, *self._stop)})
        state = before[-1].state if before else self._before
        return self._recorded(before, self.model.stream(prompt, self._max_new_tokens, state, sample, **options), prompt)

    def _recorded(self, before: list[Turn], stream: TextStream, prompt: str) -> Generator[str, None, None]:
        """Nothing is recorded of a reply that an error breaks off."""
        with suppress(GeneratorExit):  # the reader asks for no more
            yield from _without_leading_blanks(stream)
        self.turns = [*before, Turn(prompt, stream.text, stream.sample, stream.state)]

    def save(self, path: str | Path) -> None:
        """Writes state, text and template, from which `load` goes on.

        Raises:
            RequestError: nothing was said yet, or it cannot be written there.
        """
        if self.state is None:
            raise RequestError("nothing was said yet, there is nothing to save")
        self.state.save(path, {"text": self.text, "template": self.template.name})

    def load(self, path: str | Path) -> None:
        """Goes on with what `save` wrote, with its template.

        Raises:
            RequestError: it cannot be read, or another model wrote it.
        """
        state, about = State.load(path), State.about(path)
        state.check(self.model.config, self.model.fingerprint, batch=1)
        self.turns, self._before, self._text_before = [], state, about.get("text", "")
        self.template = TEMPLATES.get(about.get("template", ""), self.template)


def _without_leading_blanks(pieces: Iterator[str]) -> Iterator[str]:
    """A reply often begins with the space that no prompt ends with."""
    for piece in pieces:
        if shown := piece.lstrip():
            yield shown
            break
    yield from pieces
