"""A hub on the loopback: the part of the real one's HTTP interface that its client uses to download and to upload."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub
from hub_faults import Fault
from hub_repository import OWNER, Repository
from hub_uploads import Refused, Uploads
from huggingface_hub import constants


class HubServer(ThreadingHTTPServer):
    """Serves each folder of `root` as a repository `someone/FOLDER`, at the branch main and the tag v1.

    Attributes:
        repositories: by their ids.
        log: (method, path, range) of every request for a file, and of every one that is no GET or HEAD.
        complaints: what was wrong with requests, the faults below aside.
        token: asked for in every request, if set.
        writer, reader: the tokens that may write, and may not.
        part_size: larger files are to be sent in parts of so many bytes.
        faults: what goes wrong, of which the first that strikes a request counts.
        refused: repositories whose files are refused with 403, though they can be seen, and the error code of that.
        fault: status of every answer, if set.
        break_after: the next GET of a longer file is cut after so many bytes,
        reset: with a reset instead of an orderly end,
        on_break: and this is called before that.
        delay: seconds before every answer.
    """

    daemon_threads = True
    writer, reader = "hf_thatMayWrite", "hf_thatMayRead"

    def __init__(self, root: Path | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        folders = sorted(root.iterdir()) if root else []
        self.repositories = {f"{OWNER}/{folder.name}": Repository.of_folder(folder) for folder in folders}
        self.log: list[tuple[str, str, str | None]] = []
        self.complaints: list[str] = []
        self.token: str | None = None
        self.part_size = 1 << 40
        self.faults: list[Fault] = []
        self.refused: dict[str, str] = {}
        self.fault: int | None = None
        self.break_after: int | None = None
        self.reset = False
        self.on_break: Callable[[], object] = lambda: None
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


def become_client_of(server: HubServer, monkeypatch, home: Path) -> None:
    """The client of this process has an empty cache, no login, no xet, and waits between no two attempts.

    It reads its environment when it is imported, so what it has read is replaced.
    """
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()


class Handler(Uploads):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or headers wait 40 ms for their content
    server: HubServer

    def log_message(self, *arguments) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        path = urlsplit(self.path).path  # in which a slash of a branch's name is not one
        if self.struck_by_fault(path):
            return None
        if self.server.fault:
            return self.refuse(self.server.fault)
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            if self.headers.get("Authorization"):
                return self.refuse(401, message="Invalid credentials in Authorization header")
            return self.refuse(401, "RepoNotFound")  # to a stranger the real hub tells private from missing in nothing
        if path == "/api/whoami-v2":
            return self.answer_upload(self.who_am_i)
        if m := re.fullmatch(rf"/api/models/({OWNER}/[^/]+)(?:/revision/(.+))?", path):
            return self.describe(m[1], unquote(m[2] or "main"))
        if m := re.fullmatch(rf"/api/models/({OWNER}/[^/]+)/tree/([^/]+)/?", path):
            return self.list_tree(m[1], m[2])
        if m := re.fullmatch(rf"/({OWNER}/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(m[1], unquote(m[2]), unquote(m[3]))
        return self.refuse(404, "RepoNotFound")

    def do_POST(self) -> None:
        self.do_PUT()

    def do_PUT(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path, None))
        if not self.struck_by_fault(path):
            self.answer_upload(lambda: self.take(path))

    def answer_upload(self, action: Callable[[], tuple[dict, dict]]) -> None:
        """Answers with the content and the headers that `action` returns, or why it refused."""
        try:
            content, headers = action()
        except Refused as refused:
            if refused.is_complaint:
                self.server.complaints.append(str(refused))
            self.refuse(refused.status, refused.code, str(refused), refused.content)
        except (LookupError, TypeError, ValueError) as error:  # something is missing in the request, or of another kind
            self.server.complaints.append(f"{self.path}: {error!r}")
            self.refuse(400)
        else:
            self.answer(200, {"Content-Type": "application/json", **headers}, json.dumps(content).encode())

    def struck_by_fault(self, path: str) -> bool:
        fault = next((fault for fault in self.server.faults if fault.strikes(self.command, path)), None)
        if fault is None:
            return False
        if fault.status:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.refuse(fault.status, fault.code, fault.message)
            return True
        self.rfile.read(fault.cut)
        fault.event()
        time.sleep(fault.silent)
        self.reset_connection()
        return True

    def reset_connection(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """A repository that may be seen, and the commit of a revision of it; otherwise answers that there is none."""
        repository = self.server.repositories.get(name)
        may_see = repository and (not repository.is_private or self.headers.get("Authorization"))
        if not may_see:
            self.refuse(404, "RepoNotFound")
        elif commit := repository.find(revision):
            return repository, commit
        else:
            self.refuse(404, "RevisionNotFound")
        return None

    def describe(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            repository, commit = found
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self.answer_json({"id": name, "sha": commit, "siblings": siblings})

    def list_tree(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            repository, commit = found
            files = repository.commits[commit].items()
            self.answer_json(
                [{"type": "file", "path": path, "size": len(f.content), "oid": "0" * 40} for path, f in files]
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        self.server.log.append((self.command, path, self.headers.get("Range")))
        found = self.find(name, revision)
        if found is None:
            return None
        repository, commit = found
        name = name.partition("/")[2]
        if name in self.server.refused:
            return self.refuse(403, self.server.refused[name])
        if path not in repository.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        file = repository.commits[commit][path]
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(file.content) - 1}/{len(file.content)}"
            return self.answer(206, headers, file.content[start:])
        return self.answer(200, headers, file.content)

    def refuse(self, status: int, code: str = "", message: str = "no", content: dict | None = None) -> None:
        body = json.dumps(content).encode() if content else b""
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message}, body)

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
        self.server.on_break()
        self.close_connection = True
        if self.server.reset:
            self.reset_connection()
