"""Prompt formats of chat and instruction models.

A turn ends exactly where the reply begins, without a space or newline that would be a part of the reply's first token.
The formats are those that models were trained with; the preambles are an introduction of our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rwkv_engine.errors import RequestError


@dataclass(frozen=True)
class Template:
    """A prompt format.

    Attributes:
        name: the name of the format for `--template`.
        preamble: text before the first turn.
        turn: text of a turn up to the reply; contains `{message}`.
        turn_with_input: the same with `{message}` and `{input}`; None if the format has no field for an input.
        between: text between a reply and the next turn.
        stop: strings that end a reply.
        one_line_apart: whether blank lines separate turns, so that they must be removed from messages.
        opening: the beginning of the reply that is part of the prompt: of a block of thoughts, or an empty one. The
            tag is not finished, because models were trained with a token that ends it and the line.
        speaker: what precedes an introduction, if models were trained with it.
    """

    name: str
    turn: str
    stop: tuple[str, ...]
    preamble: str = ""
    turn_with_input: str | None = None
    between: str = "\n\n"
    one_line_apart: bool = True
    opening: str = ""
    speaker: str = ""

    @property
    def blank(self) -> str:
        """What is between a turn and its reply: models begin one with a blank where the turn ends with a colon."""
        return "" if self.turn.endswith("\n") else " "

    def render(self, message: str, input: str = "") -> str:
        """The text of the last turn, up to what the model writes.

        Raises:
            RequestError: there is an input, but the format has no field for it.
        """
        return self.turn_of(message, input) + self.opening

    def turn_of(self, message: str, input: str = "") -> str:
        """The text of one turn, up to the reply.

        Raises:
            RequestError: as `render`.
        """
        # Both are replaced in one pass, so a message may contain the text {input}.
        parts = {"{message}": self.clean(message), "{input}": self.clean(input)}
        if not input:
            return re.sub("{message}", lambda _: parts["{message}"], self.turn)
        if self.turn_with_input is None:
            able = ", ".join(t.name for t in TEMPLATES.values() if t.turn_with_input)
            raise RequestError(f"the template {self.name} has no place for an input; use one of {able}")
        return re.sub("{message}|{input}", lambda found: parts[found[0]], self.turn_with_input)

    def conversation(self, turns: Sequence[tuple[str, str]], message: str, introduction: str | None = None) -> str:
        """The text of a whole conversation, up to the reply to its last message.

        Args:
            turns: the earlier messages with their replies.
            message: the last message.
            introduction: text before the first turn, in place of the preamble; None for the preamble.
        """
        begin = self.preamble if introduction is None else self.introduced(introduction)
        said = (self.turn_of(asked) + self.blank + self.clean(reply) + self.between for asked, reply in turns)
        return begin + "".join(said) + self.render(message)

    def introduced(self, text: str) -> str:
        """An introduction, up to the first turn."""
        cleaned = self.clean(text)
        return (self.speaker if cleaned else "") + cleaned + self.between

    def clean(self, text: str) -> str:
        """Removes what would break the format: white space around a message, blank lines if they separate turns."""
        text = text.replace("\r\n", "\n").strip()
        return re.sub(r"\n\s*\n", "\n", text) if self.one_line_apart else text


_INSTRUCTION = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."

TEMPLATES = {
    template.name: template
    for template in (
        Template(  # Raven's own
            name="bob-alice",
            preamble="\nBob talks with Alice, a well-read friend who answers him kindly, correctly and in detail.\n\n"
            "Bob: Hello Alice, how are you?\n\nAlice: Hello Bob! I am fine, thank you. What is on your mind?\n\n"
            "Bob: Which ocean is the largest?\n\nAlice: The Pacific. It covers about a third of the Earth.\n\n",
            turn="Bob: {message}\n\nAlice:",
            stop=("\n\n",),
        ),
        Template(
            name="user-bot",
            preamble="\nBot is a knowledgeable and polite assistant that answers User's questions in detail.\n\n"
            "User: Hello Bot.\n\nBot: Hello! What can I do for you?\n\n"
            "User: Which ocean is the largest?\n\nBot: The Pacific. It covers about a third of the Earth.\n\n",
            turn="User: {message}\n\nBot:",
            stop=("\n\n",),
        ),
        Template(name="qa", turn="Question: {message}\n\nAnswer:", stop=("\n\n",)),
        Template(name="world", turn="User: {message}\n\nAssistant:", stop=("\n\n",)),
        *(
            Template(
                name=name,
                turn="User: {message}\n\nAssistant:",
                stop=("\n\nUser:",),
                opening=opening,
                speaker="System: ",
            )
            for name, opening in [("g1", ""), ("g1-think", " <think"), ("g1-no-think", " <think>\n</think")]
        ),
        Template(
            name="instruction",
            turn=f"{_INSTRUCTION}. {_REQUEST}\n\n# Instruction:\n{{message}}\n\n# Response:\n",
            turn_with_input=f"{_INSTRUCTION}, paired with an input that provides further context. {_REQUEST}\n\n"
            "# Instruction:\n{message}\n\n# Input:\n{input}\n\n# Response:\n",
            stop=(f"\n\n{_INSTRUCTION}", f"\n{_INSTRUCTION}", "\n\n# Instruction:", "\n# Instruction:"),
            one_line_apart=False,
        ),
        Template(  # as in the Hugging Face model cards
            name="instruction-hf",
            turn="### Instruction: {message}\n### Response:",
            turn_with_input="### Instruction: {message}\n### Input: {input}\n### Response:",
            stop=("\n\n### Instruction:", "\n### Instruction:"),
            between="\n",
        ),
    )
}


def template_for(n_vocab: int, version: int = 4) -> Template:
    """The format that most models of an RWKV version with a vocabulary of this size were trained with.

    It is World's or Raven's. RWKV-7 models with World's vocabulary, World and G1, have the same turns as World's
    earlier ones, but their replies may contain blank lines.
    """
    if n_vocab != 65536:
        return TEMPLATES["bob-alice"]
    return TEMPLATES["world" if version < 7 else "g1"]
