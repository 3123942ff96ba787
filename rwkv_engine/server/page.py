"""The chat page at `/`: files that are read once, and headers that let the page use nothing but this server."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    # Trusted types make the browser refuse innerHTML and the like, so that a model's text can never become markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}
FOREVER = "public, max-age=31536000, immutable"
REVALIDATED = "no-cache"


def is_page(path: str) -> bool:
    """Whether a path is the page's, which is served without a key and while the model is loaded."""
    return path == "/" or path.startswith("/page/")


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is and compressed."""

    content: bytes
    compressed: bytes
    media_type: str

    @classmethod
    def of(cls, name: str, content: bytes) -> PageFile:
        """The file of this name and content."""
        return cls(content, gzip.compress(content, mtime=0), f"{MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8")

    def response(self, request: Request, headers: dict[str, str]) -> Response:
        """The file as the client can read it."""
        headers = HEADERS | headers
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.compressed, headers=headers | {"Content-Encoding": "gzip"}, media_type=self.media_type)
        return Response(self.content, headers=headers, media_type=self.media_type)


def read_files() -> tuple[str, dict[str, PageFile]]:
    """A hash of all files, and the files by name. `index.html` names the others below that hash.

    So a browser may keep them for ever, and asks only whether `index.html` has changed. Its addresses are relative, and
    work behind a proxy at any address that ends with a slash.
    """
    contents = {
        item.name: item.read_bytes()
        for item in sorted((files("rwkv_engine.server") / "page").iterdir(), key=lambda item: item.name)
        if item.name.rpartition(".")[2] in MEDIA_TYPES
    }
    version = sha256(b"".join(name.encode() + content for name, content in contents.items())).hexdigest()[:16]
    contents["index.html"] = contents["index.html"].replace(b'="page/', f'="page/{version}/'.encode())
    return version, {name: PageFile.of(name, content) for name, content in contents.items()}


def page() -> APIRouter:
    """The routes. They are left out of the OpenAPI document, because programs do not need them."""
    router = APIRouter(include_in_schema=False)
    version, known = read_files()
    index = known.pop("index.html")
    tag = f'W/"{version}"'

    @router.api_route("/", methods=["GET", "HEAD"])
    async def start(request: Request) -> Response:
        """The page."""
        headers = {"Cache-Control": REVALIDATED, "ETag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=HEADERS | headers)
        return index.response(request, headers)

    @router.api_route("/page/{of}/{name}", methods=["GET", "HEAD"])
    async def part(request: Request, of: str, name: str) -> Response:
        """A file that it consists of."""
        if of != version or name not in known:
            raise HTTPException(404)
        return known[name].response(request, {"Cache-Control": FOREVER})

    return router
