"""The half of the loopback hub that takes uploads, strictly: what the real one would choke on is a complaint here."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from hub_repository import LARGE, OWNER, File, Repository

if TYPE_CHECKING:
    from hub_server import HubServer

ID = r"([\w.-]+/[\w.-]+)"
LFS = "application/vnd.git-lfs+json"
Answer = tuple[object, dict[str, str]]


class Refused(Exception):
    """An answer other than 200; a complaint is one about the request itself."""

    def __init__(
        self, status: int, message: str, code: str = "", content: dict | None = None, is_complaint: bool = True
    ):
        super().__init__(message)
        self.status, self.code, self.content, self.is_complaint = status, code, content, is_complaint


def require(claim: object, message: str, status: int = 400) -> None:
    if not claim:
        raise Refused(status, message)


class Uploads(BaseHTTPRequestHandler):
    """Methods of the handler: each reads the request and returns the answer's content and headers, or refuses."""

    server: HubServer
    headers: Message

    def take(self, path: str) -> Answer:
        """A POST or PUT request; its body is read whatever the answer is, for the next request follows it."""
        require(self.headers.get("Content-Length"), f"{path}: no Content-Length", 411)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if m := re.fullmatch(rf"/store/{ID}/([0-9a-f]{{64}})(?:/(\d+))?", path):
            return self.store(m[1], m[2], m[3], body)
        require(self.command == "POST", f"{path}: {self.command}", 405)
        if m := re.fullmatch(rf"/complete/{ID}", path):
            return self.complete(m[1], self.read_json(body, LFS))
        token = self.token()
        if path == "/api/repos/create":
            return self.create(token, self.read_json(body))
        if path == "/api/validate-yaml":
            return self.validate(self.read_json(body))
        routes = {
            rf"/api/models/{ID}/(branch)/(.+)": "application/json",
            rf"/api/models/{ID}/(preupload)/(.+)": "application/json",
            rf"/api/models/{ID}/(commit)/(.+)": "application/x-ndjson",
            rf"/{ID}\.git/info/lfs/objects/(batch)": LFS,
            rf"/{ID}\.git/info/lfs/(verify)": "application/json",
        }
        for route, kind in routes.items():
            if m := re.fullmatch(route, path):
                repository = self.server.repositories.get(m[1])
                if repository is None:
                    raise Refused(404, "Repository not found", "RepoNotFound", is_complaint=False)
                if token != self.server.writer:
                    raise Refused(403, f"You have no right to write to {m[1]}", is_complaint=False)
                content = self.read_lines(body, kind) if m[2] == "commit" else self.read_json(body, kind)
                return getattr(self, m[2])(m[1], repository, content, *m.groups()[2:])
        raise Refused(404, f"{path}: unknown path")

    def token(self) -> str:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if token not in (self.server.writer, self.server.reader):
            raise Refused(401, "Invalid credentials in Authorization header", is_complaint=False)
        require(scheme == "Bearer", f"authorization by {scheme}")
        return token

    def read_json(self, body: bytes, kind: str = "application/json") -> dict:
        require(self.headers.get("Content-Type") == kind, f"{self.path}: {self.headers.get('Content-Type')}")
        return json.loads(body)

    def read_lines(self, body: bytes, kind: str) -> list[dict]:
        require(self.headers.get("Content-Type") == kind, f"{self.path}: {self.headers.get('Content-Type')}")
        require(body.endswith(b"\n"), "the last line does not end")
        return [json.loads(line) for line in body.splitlines()]

    def who_am_i(self) -> Answer:
        self.token()
        return {"type": "user", "name": OWNER, "orgs": []}, {}

    def create(self, token: str, asked: dict) -> Answer:
        owner, name = asked.get("organization"), asked["name"]
        require(re.fullmatch(r"[\w.-]{1,96}", name), f"name {name!r}")
        require(set(asked) <= {"name", "organization", "type", "visibility", "private"}, f"unknown in {set(asked)}")
        if owner != OWNER or token != self.server.writer:
            raise Refused(403, f'You have no right to create a model in "{owner}"', is_complaint=False)
        url = f"{self.server.endpoint}/{owner}/{name}"
        if f"{owner}/{name}" in self.server.repositories:
            known = {"error": "You already created this model repo", "url": url}
            raise Refused(409, known["error"], content=known, is_complaint=False)
        is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        first = {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)}
        self.server.repositories[f"{owner}/{name}"] = Repository(first, is_private)
        return {"url": url, "name": f"{owner}/{name}", "id": "1"}, {}

    def validate(self, asked: dict) -> Answer:
        if "license: none-such" in asked["content"]:
            errors = [{"message": '"license" must be one of apache-2.0, mit'}, {"message": "and more"}]
            raise Refused(400, "invalid metadata", content={"errors": errors, "warnings": []}, is_complaint=False)
        return {"errors": [], "warnings": []}, {}

    def branch(self, name: str, repository: Repository, asked: dict, branch: str) -> Answer:
        if branch in repository.branches:
            raise Refused(409, "Reference already exists", is_complaint=False)
        repository.branches[branch] = repository.branches[asked.get("startingPoint", "main")]
        return {}, {}

    def preupload(self, name: str, repository: Repository, asked: dict, branch: str) -> Answer:
        self.require_branch(repository, branch)
        at = repository.commits[repository.branches[branch]]
        answers = []
        for file in asked["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"], validate=True)
            require(len(sample) == min(file["size"], 512), f"{path}: sample of {len(sample)} bytes of {file['size']}")
            mode = "lfs" if path.endswith(LARGE) and file["size"] else "regular"
            repository.announced[path] = file["size"], sample, mode
            known = {"oid": at[path].oid} if path in at else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answers}, {}

    def batch(self, name: str, repository: Repository, asked: dict) -> Answer:
        require(self.headers.get("Accept") == LFS, f"Accept: {self.headers.get('Accept')}")
        require(asked["operation"] == "upload" and asked["hash_algo"] == "sha256", f"asked for {asked}")
        require({"basic", "multipart"} <= set(asked["transfers"]), f"transfers {asked['transfers']}")
        if "ref" in asked:
            self.require_branch(repository, asked["ref"]["name"])
        store = f"{self.server.endpoint}/store/{name}"
        verify = {"href": f"{self.server.endpoint}/{name}.git/info/lfs/verify"}
        answers = []
        for known in asked["objects"]:
            oid, size = known["oid"], known["size"]
            require(re.fullmatch("[0-9a-f]{64}", oid) and size > 0, f"object {known}")
            require(size in {length for length, _, mode in repository.announced.values() if mode == "lfs"}, f"{known}")
            upload: dict = {"href": f"{store}/{oid}"}
            if size > self.server.part_size:
                count = math.ceil(size / self.server.part_size)
                header = {str(n): f"{store}/{oid}/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{self.server.endpoint}/complete/{name}",
                    "header": {"chunk_size": str(self.server.part_size), **header},
                }
                repository.parts[oid] = {}
            has_arrived = oid in repository.objects
            answers.append(known if has_arrived else {**known, "actions": {"upload": upload, "verify": verify}})
        return {"transfer": "basic", "objects": answers}, {}

    def store(self, name: str, oid: str, part: str | None, body: bytes) -> Answer:
        require(self.command == "PUT", f"{self.command} to the store", 405)
        require("Authorization" not in self.headers, "a signed address needs no token, and must not see it")
        repository = self.server.repositories[name]
        tag = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        if part:
            require(oid in repository.parts, f"{oid}: was not to be sent in parts")
            repository.parts[oid][int(part)] = body
            return {}, tag
        self.keep(repository, oid, body)
        return {}, tag

    def complete(self, name: str, asked: dict) -> Answer:
        repository = self.server.repositories[name]
        parts = repository.parts.pop(asked["oid"])
        told = {part["partNumber"]: part["etag"] for part in asked["parts"]}
        require(told == {n: f'"{hashlib.md5(part).hexdigest()}"' for n, part in parts.items()}, f"parts {told}")
        *whole, last = (parts[n] for n in sorted(parts))
        require(all(len(part) == self.server.part_size for part in whole) and last, "a part of another size")
        self.keep(repository, asked["oid"], b"".join([*whole, last]))
        return {}, {}

    def keep(self, repository: Repository, oid: str, content: bytes) -> None:
        require(hashlib.sha256(content).hexdigest() == oid, f"{oid}: the content is another")
        sizes = {size for size, sample, _ in repository.announced.values() if content.startswith(sample)}
        require(len(content) in sizes, f"{oid}: {len(content)} bytes were not announced")
        repository.objects[oid] = content

    def verify(self, name: str, repository: Repository, asked: dict) -> Answer:
        content = repository.objects.get(asked["oid"])
        require(content is not None and len(content) == asked["size"], f"{asked} has not arrived", 404)
        return {}, {}

    def commit(self, name: str, repository: Repository, asked: list[dict], branch: str) -> Answer:
        """All of it or, if one line is wrong, nothing."""
        self.require_branch(repository, branch)
        (header, *changes) = ((line["key"], line["value"]) for line in asked)
        require(header[0] == "header" and header[1]["summary"] and changes, f"header {header}, {len(changes)} changes")
        files = dict(repository.commits[repository.branches[branch]])
        for key, value in changes:
            path = value["path"]
            size, sample, mode = repository.announced.get(path, (None, b"", None))
            require(not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts, f"path {path}")
            require(mode == {"file": "regular", "lfsFile": "lfs"}.get(key), f"{path}: {key}, announced as {mode}")
            if key == "file":
                require(value["encoding"] == "base64", f"{path}: {value['encoding']}")
                content = base64.b64decode(value["content"], validate=True)
            else:
                require(value["algo"] == "sha256" and value["size"] == size, f"{path}: {value}")
                require(value["oid"] in repository.objects, f"{path}: {value['oid']} has not arrived")
                content = repository.objects[value["oid"]]
            require(len(content) == size and content.startswith(sample), f"{path}: not what was announced")
            files[path] = File(content, is_large=key == "lfsFile")
        commit = repository.commit(branch, files, header[1]["summary"])
        url = f"{self.server.endpoint}/{name}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url}, {}

    def require_branch(self, repository: Repository, branch: str) -> None:
        if branch not in repository.branches:
            raise Refused(404, f"{branch}: no such branch", "RevisionNotFound", is_complaint=False)
