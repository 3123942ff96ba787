"""A conversation with a model: turns, each with the state after it."""

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
    """A message and its reply.

    Attributes:
        prompt: the message in the prompt format.
        reply: the reply exactly as generated.
        sample: the number of retries before this reply.
        state: the state after the reply.
    """

    prompt: str
    reply: str
    sample: int
    state: State


class Chat:
    """A conversation with a model.

    Attributes:
        template: the prompt format.
        turns: the turns since the start of the conversation, or since `load`.
    """

    def __init__(self, model: RWKV, template: Template, max_new_tokens: int = 500, **sampling: Unpack[SamplingOptions]):
        """`sampling`: the options of `RWKV.stream`. The template's stop strings are added to `stop`."""
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
        """Starts a new conversation."""
        self.turns, self._before, self._text_before = [], None, ""

    @property
    def state(self) -> State | None:
        """The state after the last reply; None before the first message."""
        return self.turns[-1].state if self.turns else self._before

    @property
    def text(self) -> str:
        """The whole conversation as the model has processed it."""
        return self._text_before + "".join(turn.prompt + turn.reply for turn in self.turns)

    def reply(self, message: str, input: str = "") -> Generator[str, None, None]:
        """Yields the reply piece by piece. Closing the generator ends the reply there.

        Args:
            message: the user's message.
            input: a text that the message refers to, for templates with such a field (`instruction`).

        Raises:
            RequestError: the message is empty, or the template has no field for an input.
        """
        if not self.template.clean(message):
            raise RequestError("the message is empty, expected some text")
        begin = self.template.preamble if self.state is None else self.template.between
        return self._answer(self.turns, begin + self.template.render(message, input), sample=0)

    def retry(self) -> Generator[str, None, None]:
        """Replaces the last reply by another one, which it yields as `reply` does.

        Raises:
            RequestError: there is no message yet.
        """
        self._require_turn()
        last = self.turns[-1]
        return self._answer(self.turns[:-1], last.prompt, last.sample + 1)

    def undo(self) -> None:
        """Removes the last message and its reply.

        Raises:
            RequestError: there is no message yet.
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
        """Writes the state, the text and the name of the template to a file.

        Raises:
            RequestError: there is no message yet, or the file cannot be written.
        """
        if self.state is None:
            raise RequestError("nothing was said yet, there is nothing to save")
        self.state.save(path, {"text": self.text, "template": self.template.name})

    def load(self, path: str | Path) -> None:
        """Continues a conversation that `save` wrote, with its template.

        Raises:
            RequestError: the file cannot be read, or is of another model.
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
