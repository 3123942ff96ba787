"""`rwkv-engine serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkv_engine.cli.options import LOCATION_HELP, load, loading_options, stderr
from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import log
from rwkv_engine.text.templates import TEMPLATES, Template

if TYPE_CHECKING:
    from rwkv_engine.server.jinja_template import JinjaTemplate

LOOPBACK = ("127.0.0.1", "::1", "localhost")
AT_LEAST_ONE = click.IntRange(min=1)


@click.command(help=f"Serves MODEL over HTTP, with OpenAI's protocol. MODEL is {LOCATION_HELP}")
@click.argument("model", default="tales")
@loading_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 is a free one.")
@click.option("--name", help="The model's name for clients; by default the last part of MODEL.")
@click.option(
    "--template",
    metavar="NAME|FILE.jinja",
    help=f"Prompt format the model was trained on: one of {', '.join(TEMPLATES)}, or a file with a Jinja template;"
    " default world for World models (RWKV-7: g1), else bob-alice.",
)
@click.option(
    "--stop",
    "stops",
    multiple=True,
    metavar="TEXT",
    help="String that ends replies with a Jinja template; may be repeated.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with API keys, one on each line, and their limits; without it everyone is served.",
)
@click.option("--strict", is_flag=True, help="Refuse unknown fields in requests, instead of ignoring them.")
@click.option("--slots", type=AT_LEAST_ONE, default=16, show_default=True, help="Texts that run at a time.")
@click.option(
    "--most-waiting",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Texts that may wait for a slot; further ones are refused with status 429.",
)
@click.option("--most-prompt-tokens", type=AT_LEAST_ONE, default=16384, show_default=True, help="Longest prompt.")
@click.option("--most-new-tokens", type=AT_LEAST_ONE, default=4096, show_default=True, help="Longest text.")
@click.option("--most-body-bytes", type=AT_LEAST_ONE, default=2**20, show_default=True, help="Largest request.")
@click.option(
    "--cache-bytes",
    type=click.IntRange(min=0),
    default=2**30,
    show_default=True,
    help="Memory for states after prompts, from which later prompts that begin in the same way continue; 0 for none.",
)
@click.option(
    "--cache-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for these states, so that they outlive the server; without it they are in memory only.",
)
@click.option(
    "--cache-file-bytes",
    type=click.IntRange(min=0),
    default=10 * 2**30,
    show_default=True,
    help="Largest size of that folder.",
)
@click.option(
    "--state-keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with secret keys, one on each line, which seal states for clients; without it none are given away.",
)
@click.option(
    "--state-seconds",
    type=click.FloatRange(min=1),
    default=30.0 * 24 * 60 * 60,
    show_default=True,
    help="How long a sealed state can be used.",
)
@click.option(
    "--session-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for sessions, which clients name; they are sealed with --state-keys.",
)
@click.option(
    "--session-seconds",
    type=click.FloatRange(min=1),
    default=30.0 * 24 * 60 * 60,
    show_default=True,
    help="How long a session is kept after its last use.",
)
@click.option(
    "--session-bytes",
    type=click.IntRange(min=0),
    default=10 * 2**30,
    show_default=True,
    help="Size of all sessions at which no further ones are begun.",
)
@click.option(
    "--most-sessions", type=AT_LEAST_ONE, default=1000, show_default=True, help="Most sessions of an API key."
)
@click.option(
    "--request-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Longest time from a request to the end of its response; by default there is no limit.",
)
@click.option(
    "--client-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Longest time to wait for a client, to send a request or to read what was sent.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="On SIGTERM or Ctrl-C, finish what was begun for at most this long.",
)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name by which a proxy addresses a server that has no keys and listens on this machine only; may be repeated.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages from this origin, such as https://example.com, use the server (CORS); may be repeated.",
)
@click.option("--page/--no-page", default=True, show_default=True, help="Whether the chat page is at /.")
def serve(
    model: str,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
    host: str,
    port: int,
    name: str | None,
    template: str | None,
    stops: tuple[str, ...],
    keys: Path | None,
    strict: bool,
    slots: int,
    most_waiting: int,
    most_prompt_tokens: int,
    most_new_tokens: int,
    most_body_bytes: int,
    cache_bytes: int,
    cache_folder: Path | None,
    cache_file_bytes: int,
    state_keys: Path | None,
    state_seconds: float,
    session_folder: Path | None,
    session_seconds: float,
    session_bytes: int,
    most_sessions: int,
    request_seconds: float | None,
    client_seconds: float,
    drain_seconds: float,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    page: bool,
) -> None:
    """Runs the server; its help is in the decorator, because it names the kinds of models."""
    try:
        from rwkv_engine.portable import SealingKeys
        from rwkv_engine.server import logs, run
        from rwkv_engine.server.keys import Keys
        from rwkv_engine.server.service import Service, Settings
    except ImportError as error:
        raise RwkvError(f"{error.name} is not installed: pip install 'rwkv-engine[serve]'") from error
    settings = Settings(
        name=name or Path(model).name,
        template=_template(template, stops),
        strict=strict,
        slots=slots,
        most_waiting=most_waiting,
        most_prompt_tokens=most_prompt_tokens,
        most_new_tokens=most_new_tokens,
        most_body_bytes=most_body_bytes,
        cache_bytes=cache_bytes,
        cache_folder=cache_folder,
        cache_file_bytes=cache_file_bytes,
        state_keys=SealingKeys.read(state_keys) if state_keys else None,
        state_seconds=state_seconds,
        session_folder=session_folder,
        session_seconds=session_seconds,
        session_bytes=session_bytes,
        most_sessions=most_sessions,
        request_seconds=request_seconds,
        client_seconds=client_seconds,
        keys=Keys.read(keys) if keys else None,
        # A key tells who may use the server; and where it listens on other addresses too, its names are not known.
        hosts=None if keys or host not in LOOPBACK else frozenset([*LOOPBACK, *map(str.lower, hosts)]),
        origins=origins,
        page=page,
    )
    with logs.structured_logs():
        if not keys and host not in LOOPBACK:
            log.warning("everyone who reaches %s may use this server; --keys FILE restricts it", host)
        run.serve(
            Service(settings),
            lambda: load(stderr(), model, revision, offline, strategy, tokenizer),
            host,
            port,
            drain_seconds,
        )


def _template(given: str | None, stops: tuple[str, ...]) -> Template | JinjaTemplate | None:
    from rwkv_engine.server.jinja_template import JinjaTemplate

    if given and given.endswith(".jinja"):
        return JinjaTemplate.read(Path(given), stops)
    if given and given not in TEMPLATES:
        raise RwkvError(
            f"template: got {given}, expected one of {', '.join(TEMPLATES)}, or a file that ends with .jinja"
        )
    if stops:
        raise RwkvError("stop: expected only with a Jinja template; those of this engine have their own")
    return TEMPLATES[given] if given else None
