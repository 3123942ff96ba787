"""`rwkv-engine chat`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from rwkv_engine.chat import Chat
from rwkv_engine.cli.options import load, loading_options, model_option, sampling_options, stderr
from rwkv_engine.errors import RequestError, RwkvError
from rwkv_engine.text.templates import TEMPLATES, template_for

HELP = """\
/help          this
/reset         forget everything
/retry         another reply to the last message
/undo          take the last message and its reply back
/save FILE     write the conversation to a file
/load FILE     go on with a saved one
/input FILE    what the next message is about (templates instruction, instruction-hf)
/exit          leave, as Ctrl-D does
Ctrl-C stops a reply. Alt-Enter begins a new line in a message. // begins a message with a slash."""
PROMPT = "> "


@click.command()
@model_option
@loading_options
@click.option(
    "--template", type=click.Choice(list(TEMPLATES)), help="Prompt format; by default told by the vocabulary."
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
    """Talks with a model; /help tells what can be done besides."""
    console = stderr()
    loaded = load(console, model, revision, offline, strategy, tokenizer)
    chosen = TEMPLATES[template] if template else template_for(loaded.config.n_vocab)
    conversation = Chat(loaded, chosen, max_new_tokens, **sampling)
    console.print(f"{loaded.source.name}, template {chosen.name}. /help for help, Ctrl-D to leave.")
    terminal = _Terminal(conversation)
    somebody_sits_there = sys.stdin.isatty() and sys.stdout.isatty()
    terminal.run(_typed() if somebody_sits_there else (line.rstrip("\n") for line in sys.stdin))
    if terminal.failed and not somebody_sits_there:
        sys.exit(1)


class _Terminal:
    """Obeys lines, shows replies."""

    def __init__(self, conversation: Chat):
        self.chat = conversation
        self.input = ""  # of the next message
        self.failed = False

    def run(self, lines: Iterator[str]) -> None:
        for line in lines:
            try:
                self.obey(line)
            except EOFError:
                break
            except KeyboardInterrupt:
                click.echo()
            except RwkvError as error:
                self.failed = True
                click.echo(f"error: {error}", err=True)

    def obey(self, line: str) -> None:
        """Does what one line asks for."""
        if line.startswith("//") or not line.startswith("/"):
            if message := line.removeprefix("/").strip():
                replies = self.chat.reply(message, self.input)
                self.input = ""
                self.show(replies)
            return
        command, _, argument = line[1:].strip().partition(" ")
        argument = argument.strip()
        if command in ("save", "load", "input") and not argument:
            raise RequestError(f"/{command}: expected the name of a file behind it")
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
                self.input = _read(argument)
            case "exit":
                raise EOFError
            case _:
                raise RequestError(f"/{command}: no such command; /help lists them")

    def show(self, replies: Generator[str, None, None]) -> None:
        """Prints a reply as it comes, until Ctrl-C."""
        with _interrupts() as interrupted:
            for piece in replies:
                click.echo(piece, nl=False)
                if interrupted:
                    break
            replies.close()
        click.echo("\n")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C adds to, so that a reply ends between two tokens; a second Ctrl-C breaks off at once."""
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


def _read(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{name}: no text can be read here: {error}") from error


def _typed() -> Iterator[str]:
    """What the user types, with editing, history and completion of commands."""
    words = WordCompleter([line.split()[0] for line in HELP.splitlines() if line.startswith("/")], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=words, complete_while_typing=False, key_bindings=_keys()
    )
    while True:
        try:
            yield session.prompt(PROMPT)
        except KeyboardInterrupt:  # Ctrl-C at the prompt drops the line, as shells do
            continue
        except EOFError:
            return


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """Of earlier conversations too, where a file can be kept."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "rwkv_engine"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chat_history").touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(folder / "chat_history"))
