"""`rwkv-engine serve`."""

from __future__ import annotations

from pathlib import Path

import click

from rwkv_engine.cli.options import LOCATION_HELP, load, loading_options, stderr
from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import log
from rwkv_engine.text.templates import TEMPLATES

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
    type=click.Choice(list(TEMPLATES)),
    help="Prompt format the model was trained on; default world for World models, else bob-alice.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with API keys, one on each line; without it everyone is served.",
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
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="On SIGTERM or Ctrl-C, finish what was begun for at most this long.",
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
    keys: Path | None,
    strict: bool,
    slots: int,
    most_waiting: int,
    most_prompt_tokens: int,
    most_new_tokens: int,
    most_body_bytes: int,
    drain_seconds: float,
    origins: tuple[str, ...],
    page: bool,
) -> None:
    """Runs the server; its help is in the decorator, because it names the kinds of models."""
    try:
        from rwkv_engine.server import logs, run
        from rwkv_engine.server.keys import Keys
        from rwkv_engine.server.service import Service, Settings
    except ImportError as error:
        raise RwkvError(f"{error.name} is not installed: pip install 'rwkv-engine[serve]'") from error
    settings = Settings(
        name=name or Path(model).name,
        template=TEMPLATES[template] if template else None,
        strict=strict,
        slots=slots,
        most_waiting=most_waiting,
        most_prompt_tokens=most_prompt_tokens,
        most_new_tokens=most_new_tokens,
        most_body_bytes=most_body_bytes,
        keys=Keys.read(keys) if keys else None,
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
