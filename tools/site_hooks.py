"""Hooks of mkdocs that insert the command line reference, and check that pages load nothing from other hosts.

`mkdocs-click` could write the reference too, but its version 0.9 prints `Sentinel.UNSET` for options without a default
with click 8.3 and newer.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

LOG = logging.getLogger("mkdocs.hooks.site")
COMMANDS = "<!-- COMMANDS: tools/site_hooks.py writes them when the site is built -->"
# Resources that a browser loads by itself; links that a reader clicks may lead anywhere.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page; replaces the marker of docs/cli.md by the reference."""
    if COMMANDS not in markdown:
        return markdown
    from rwkv_engine.cli.group import commands

    return markdown.replace(COMMANDS, "\n".join(command_reference(commands, "rwkv-engine")))


def on_post_build(config: Any, **_: Any) -> None:
    """Called by mkdocs when all pages are written. A warning fails a strict build."""
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        for found in FETCHED.finditer(page.read_text(encoding="utf-8")):
            LOG.warning("%s: fetches from another host: %s", page.name, found[0])


def command_reference(group: click.Group, program: str) -> Iterator[str]:
    """Lines of Markdown: for each command a heading, how it is called, what it does, its options."""
    top = click.Context(group, info_name=program)
    for name in group.list_commands(top):
        command = group.get_command(top, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=top)
        yield f"\n## {name}\n\n```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield inspect.cleandoc(command.help or "")
        yield "\n| option | |\n|---|---|"
        for parameter in command.params:  # without --help, which all of them have
            record = parameter.get_help_record(context)
            if record and isinstance(parameter, click.Option):
                options, text = record
                yield f"| `{options}` | {text.replace('|', chr(92) + '|')} |"
