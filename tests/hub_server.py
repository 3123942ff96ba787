"""A hub on the loopback: the part of the real one's HTTP interface that its client uses to download."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

OWNER = "someone"


class HubServer(ThreadingHTTPServer):
    """Serves each folder of `root` as a repository `someone/FOLDER` with one commit, under the names in `revisions`.

    Attributes:
        log: (method, path, range) of every request for a file.
        token: asked for in every request, if set.
        refused: repositories whose files are refused with 403, though they can be seen, and the error code of that.
        fault: status of every answer, if set.
        break_after: the next GET of a longer file is cut after so many bytes,
        reset: and with a reset instead of an orderly end.
        delay: seconds before every answer.
    """

    daemon_threads = True
    revisions = ("main", "v1")

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.log: list[tuple[str, str, str | None]] = []
        self.token: str | None = None
        self.refused: dict[str, str] = {}
        self.fault: int | None = None
        self.break_after: int | None = None
        self.reset = False
        self.delay = 0.0
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is no news."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, once each."""
        return sorted({path for method, path, _ in self.log if method == "GET"})


def commit_of(folder: Path) -> str:
    return hashlib.sha1(folder.name.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        path = unquote(urlsplit(self.path).path)
        if self.server.fault:
            return self.refuse(self.server.fault)
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            if self.headers.get("Authorization"):
                return self.refuse(401, message="Invalid credentials in Authorization header")
            return self.refuse(401, "RepoNotFound")  # to a stranger the real hub tells private from missing in nothing
        if m := re.fullmatch(rf"/api/models/{OWNER}/([^/]+)(?:/revision/(.+))?", path):
            return self.describe(m[1], m[2] or "main")
        if m := re.fullmatch(rf"/api/models/{OWNER}/([^/]+)/tree/([^/]+)/?", path):
            return self.list_tree(m[1], m[2])
        if m := re.fullmatch(rf"/{OWNER}/([^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(m[1], m[2], m[3])
        return self.refuse(404, "RepoNotFound")

    def repository(self, name: str, revision: str) -> Path | None:
        folder = self.server.root / name
        if not folder.is_dir():
            self.refuse(404, "RepoNotFound")
        elif revision not in (*self.server.revisions, commit_of(folder)):
            self.refuse(404, "RevisionNotFound")
        else:
            return folder
        return None

    def describe(self, name: str, revision: str) -> None:
        if folder := self.repository(name, revision):
            files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            siblings = [{"rfilename": file} for file in files]
            self.answer_json({"id": f"{OWNER}/{name}", "sha": commit_of(folder), "siblings": siblings})

    def list_tree(self, name: str, revision: str) -> None:
        if folder := self.repository(name, revision):
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            names = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
            self.answer_json([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in names.items()])

    def resolve(self, name: str, revision: str, file: str) -> None:
        self.server.log.append((self.command, file, self.headers.get("Range")))
        folder = self.repository(name, revision)
        if folder is None:
            return
        if name in self.server.refused:
            return self.refuse(403, self.server.refused[name])
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        content = (folder / file).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit_of(folder),
            "Accept-Ranges": "bytes",
        }
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, headers, content[start:])
        return self.answer(200, headers, content)

    def refuse(self, status: int, code: str = "", message: str = "no") -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message}, b"")

    def answer_json(self, content: object) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.break_after
        if cut is None or cut >= len(content):
            self.wfile.write(content)
            return
        self.server.break_after = None
        self.wfile.write(content[:cut])
        self.close_connection = True
        if self.server.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
