"""`rwkv-engine chat`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rwkv_engine.chat import Chat, Reply
from rwkv_engine.cli.input import STANDARD_INPUT, decoded, lines_of, read_text
from rwkv_engine.cli.options import load, loading_options, model_option, sampling_options, stderr
from rwkv_engine.cli.streams import StreamError
from rwkv_engine.errors import RequestError, RwkvError
from rwkv_engine.text.templates import TEMPLATES, template_for

HELP = """\
/help          show this text
/reset         forget the conversation
/retry         generate another reply to the last message
/undo          remove the last message and its reply
/save FILE     write the conversation to a file
/load FILE     continue a saved conversation
/input FILE    read the text that the next message is about (templates instruction, instruction-hf)
/exit          leave, as Ctrl-D does
Ctrl-C stops a reply. Alt-Enter begins a new line in a message. // begins a message with a slash."""
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]


@click.command()
@model_option
@loading_options
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    help="Prompt format the model was trained on; default world for World models (RWKV-7: g1), else bob-alice.",
)
@sampling_options(
    max_new_tokens=500, top_p=0.5, presence_penalty=0.4, frequency_penalty=0.4, penalty_decay=0.996
)  # what Raven's author recommends
def chat(
    model: str,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
    template: str | None,
    max_new_tokens: int,
    **sampling: Any,
) -> None:
    """Holds a conversation with a model. Type a message, or /help for a list of commands.

    If standard input is a file or a pipe, each of its lines is a message or a command, in UTF-8.
    """
    console = stderr()
    loaded = load(console, model, revision, offline, strategy, tokenizer)
    _ = loaded.tokenizer  # without one, the error comes now and not after the first message
    chosen = TEMPLATES[template] if template else template_for(loaded.config.n_vocab, loaded.config.version)
    conversation = Chat(loaded, chosen, max_new_tokens, **sampling)
    console.print(f"{loaded.source.name}, template {chosen.name}. /help for help, Ctrl-D to leave.")
    terminal = _Terminal(conversation)
    if sys.stdin.isatty() and sys.stdout.isatty():
        from rwkv_engine.cli.line_editor import typed_lines  # takes half a second, and pipes do not need it

        terminal.run(typed_lines(COMMANDS))
        return
    terminal.run(lines_of(STANDARD_INPUT, sys.stdin.buffer))
    if terminal.failed:
        sys.exit(1)


class _Terminal:
    """Carries out the user's lines and shows replies."""

    def __init__(self, conversation: Chat):
        self.chat = conversation
        self.input = ""  # the text that the next message is about
        self.failed = False

    def run(self, lines: Iterator[str | bytes]) -> None:
        """Carries out lines, which are UTF-8 if they are bytes, until the last one or /exit."""
        for number, line in enumerate(lines, start=1):
            try:
                self.obey(line if isinstance(line, str) else _text_of(line, number))
            except StreamError:
                raise
            except EOFError:
                break
            except KeyboardInterrupt:
                click.echo()
            except RwkvError as error:
                self.failed = True
                click.echo(f"error: {error}", err=True)

    def obey(self, line: str) -> None:
        """Carries out one line."""
        if line.startswith("//") or not line.startswith("/"):
            if message := line.removeprefix("/").strip():
                replies = self.chat.reply(message, self.input)
                self.input = ""
                self.show(replies)
            return
        command, _, argument = line[1:].strip().partition(" ")
        argument = argument.strip()
        if command in ("save", "load", "input") and not argument:
            raise RequestError(f"/{command}: expected the name of a file after it")
        match command:
            case "help":
                click.echo(HELP)
            case "reset":
                self.chat.reset()
            case "retry":
                self.show(self.chat.retry())
            case "undo":
                self.chat.undo()
            case "save":
                self.chat.save(Path(argument).expanduser())
            case "load":
                self.chat.load(Path(argument).expanduser())
                click.echo(self.chat.text.strip())
            case "input":
                self.input = read_text(argument)
            case "exit":
                raise EOFError
            case _:
                raise RequestError(f"/{command}: no such command; /help lists them")

    def show(self, replies: Reply) -> None:
        """Prints a reply as it is generated, until Ctrl-C."""
        with _interrupts() as interrupted:
            for piece in replies:
                click.echo(piece, nl=False)
                if interrupted:
                    break
            replies.close()
        click.echo("\n")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C appends to, so that a reply ends between two tokens; a second Ctrl-C ends it at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _text_of(line: bytes, number: int) -> str:
    return decoded(f"standard input, line {number}", line.rstrip(b"\r\n"), is_beginning=number == 1)
