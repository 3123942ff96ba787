"""A conversation with a model: a list of turns, each with the state after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Unpack

from rwkv_engine.checks import require, require_known, require_text
from rwkv_engine.core import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import SamplingParams, TextStream
from rwkv_engine.generation.params import SamplingOptions
from rwkv_engine.pipeline import RWKV
from rwkv_engine.text.reply_text import ReplyText
from rwkv_engine.text.templates import TEMPLATES, Template


@dataclass(frozen=True)
class Turn:
    """One message and its reply.

    Attributes:
        prompt: the message, formatted by the template.
        reply: the text that the model generated.
        sample: the number of this reply among the replies to the same message, from 0.
        state: after the reply.
    """

    prompt: str
    reply: str
    sample: int
    state: State


class Reply(Iterator[str]):
    """The pieces of a reply, as they are generated, without the blanks that it begins with.

    A caller may stop reading at any piece: the chat's turns have the pieces that were read. They have nothing of a
    reply of which no piece was read, or in which an error occurred. Dropping a reply runs nothing, so that a program
    may end at any time.
    """

    def __init__(self, before: list[Turn], prompt: str, stream: TextStream, opening: str = ""):
        self._before = before
        self._prompt = prompt
        self._stream = stream
        self._turn: Turn | None = None
        self._begun = False
        self._ended = False
        self._text = ReplyText(opening)

    def __next__(self) -> str:
        while not self._ended:
            try:
                piece = next(self._stream)
            except StopIteration:
                self._begun = self._ended = True
                break
            except BaseException:
                self._begun, self._ended = False, True
                raise
            self._begun = True
            if shown := self._text.add(piece):
                return shown
        raise StopIteration

    def close(self) -> None:
        """Ends the reply after the piece that was read last."""
        self._ended = True

    def turns(self) -> list[Turn] | None:
        """The turns of the conversation with what was read of this reply; None if that is nothing."""
        if not self._begun:
            return None
        text = self._stream.text
        if self._turn is None or self._turn.reply != text:
            self._turn = Turn(self._prompt, text, self._stream.sample, self._stream.state)
        return [*self._before, self._turn]


class Chat:
    """Keeps the state of a conversation with a model.

    Attributes:
        model: generates the replies.
        template: the format of the turns.
    """

    def __init__(self, model: RWKV, template: Template, max_new_tokens: int = 500, **sampling: Unpack[SamplingOptions]):
        """Begins a conversation.

        Args:
            model: with a tokenizer.
            template: one of `TEMPLATES`, or your own.
            max_new_tokens: the largest number of tokens in a reply.
            **sampling: as for `RWKV.stream`; the template's stop strings are added.

        Raises:
            RequestError: an argument is unknown or out of range.
        """
        require("model", model, RWKV, lambda _: True, "a model, as RWKV.from_pretrained returns it")
        names = ", ".join(TEMPLATES)
        require(
            "template", template, Template, lambda _: True, f"a Template: TEMPLATES[NAME], with NAME one of {names}"
        )
        require_known(sampling, ("template", "max_new_tokens", *SamplingOptions.__annotations__))
        self.model = model
        self.template = template
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._stop = tuple(SamplingParams(**sampling).stop)  # checked before the first reply
        self._reply: Reply | None = None  # the last one, which may still be read
        self.reset()

    def reset(self) -> None:
        """Forgets the whole conversation."""
        self._settle([])
        self._loaded: State | None = None  # the state that the first turn continues
        self._loaded_text = ""

    @property
    def turns(self) -> list[Turn]:
        """The turns since the beginning, or since a conversation was loaded, with what was read of the last reply."""
        return (self._reply and self._reply.turns()) or self._turns

    def _settle(self, turns: list[Turn]) -> None:
        """Replaces the turns, and ends the reply that may still be read."""
        if self._reply:
            self._reply.close()
        self._reply = None
        self._turns = turns

    @property
    def state(self) -> State | None:
        """The state after the last reply; None before the first message."""
        turns = self.turns
        return turns[-1].state if turns else self._loaded

    @property
    def text(self) -> str:
        """All text that the model has read and generated."""
        return self._loaded_text + "".join(turn.prompt + turn.reply for turn in self.turns)

    def reply(self, message: str, input: str = "") -> Reply:
        """Yields the reply piece by piece. A caller may stop reading; the reply then ends there.

        Args:
            message: what the user says.
            input: the text that the message is about, for templates that have a place for it.

        Raises:
            RequestError: there is no message, or an input that the template has no place for.
        """
        require_text("message", message)
        require_text("input", input)
        if not self.template.clean(message):
            raise RequestError("the message is empty, expected some text")
        begin = self.template.preamble if self.state is None else self.template.between
        return self._answer(self.turns, begin + self.template.render(message, input), sample=0)

    def retry(self) -> Reply:
        """Generates another reply to the last message, in place of the one it got.

        Raises:
            RequestError: there is no message.
        """
        self._require_turn()
        last = self.turns[-1]
        return self._answer(self.turns[:-1], last.prompt, last.sample + 1)

    def undo(self) -> None:
        """Removes the last message and its reply.

        Raises:
            RequestError: there is none.
        """
        self._require_turn()
        self._settle(self.turns[:-1])

    def _require_turn(self) -> None:
        if not self.turns:
            raise RequestError("nothing was said since the beginning, or since what was loaded")

    def _answer(self, before: list[Turn], prompt: str, sample: int) -> Reply:
        options = SamplingOptions(**{**self._sampling, "stop": (*self.template.stop, *self._stop)})
        state = before[-1].state if before else self._loaded
        stream = self.model.stream(prompt, self._max_new_tokens, state, sample, **options)
        self._settle(self.turns)
        self._reply = Reply(before, prompt, stream, self.template.opening)
        return self._reply

    def save(self, path: str | Path) -> None:
        """Writes state, text and template to a file that `load` reads.

        Raises:
            RequestError: nothing was said yet, or the file cannot be written.
        """
        if self.state is None:
            raise RequestError("nothing was said yet, there is nothing to save")
        self.state.save(path, {"text": self.text, "template": self.template.name})

    def load(self, path: str | Path) -> None:
        """Continues a conversation that `save` has written, with its template.

        Raises:
            RequestError: the file cannot be read, or belongs to another model.
        """
        state, about = State.load(path), State.about(path)
        state.check(self.model.config, self.model.fingerprint, batch=1)
        self.reset()
        self._loaded, self._loaded_text = state, about.get("text", "")
        self.template = TEMPLATES.get(about.get("template", ""), self.template)
