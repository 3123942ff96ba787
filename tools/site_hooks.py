"""Checks the site that mkdocs built: it must show with no other host at hand. Any other host fails a strict build."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.site")
# What a browser fetches by itself; links that a reader clicks may lead anywhere.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
)


def on_post_build(config: Any, **_: Any) -> None:
    """Called by mkdocs when all pages are written."""
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        for found in FETCHED.finditer(page.read_text(encoding="utf-8")):
            LOG.warning("%s: fetches from another host: %s", page.name, found[0])
