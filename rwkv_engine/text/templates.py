"""Prompt formats of chat and instruction models, as data.

A turn ends where the model goes on, without a space or newline that would be part of the reply's first token. What the
formats look like is how models were trained; the preambles are only an introduction, for models trained on none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rwkv_engine.errors import RequestError


@dataclass(frozen=True)
class Template:
    """One format.

    Attributes:
        name: what the user calls it.
        preamble: read once, before the first turn.
        turn: with `{message}`; the reply follows.
        turn_with_input: with `{message}` and `{input}`; None where the format knows no input.
        between: read after a reply, before the next turn.
        stop: strings that end a reply.
        one_line_apart: blank lines separate turns, so a message must have none.
    """

    name: str
    turn: str
    stop: tuple[str, ...]
    preamble: str = ""
    turn_with_input: str | None = None
    between: str = "\n\n"
    one_line_apart: bool = True

    def render(self, message: str, input: str = "") -> str:
        """The text of one turn.

        Raises:
            RequestError: an input, and the format has no place for it.
        """
        # Replaced at once: a message that holds {input} is text like any other.
        parts = {"{message}": self.clean(message), "{input}": self.clean(input)}
        if not input:
            return re.sub("{message}", lambda _: parts["{message}"], self.turn)
        if self.turn_with_input is None:
            able = ", ".join(t.name for t in TEMPLATES.values() if t.turn_with_input)
            raise RequestError(f"the template {self.name} has no place for an input; use one of {able}")
        return re.sub("{message}|{input}", lambda found: parts[found[0]], self.turn_with_input)

    def clean(self, text: str) -> str:
        """A message as the format can hold it."""
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


def template_for(n_vocab: int) -> Template:
    """What models with a vocabulary of this size mostly are: World, or Raven."""
    return TEMPLATES["world" if n_vocab == 65536 else "bob-alice"]
