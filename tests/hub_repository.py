"""What the loopback hub keeps: repositories, each with branches of commits, and large files by their content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

OWNER = "someone"
LARGE = (".safetensors", ".bin", ".pth", ".npy")  # what .gitattributes names; the rest is in git itself


@dataclass(frozen=True)
class File:
    content: bytes
    is_large: bool

    @property
    def oid(self) -> str:
        """As the hub tells it: large files by SHA-256, others as git does."""
        if self.is_large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


class Repository:
    """Begins with one commit, on the main branch.

    Attributes:
        commits: of each commit, by its id, the files at it by their paths.
        branches: the commit each is at.
        messages: of the commits in the order in which they came.
        objects: content of the large files that have arrived, by SHA-256, in a commit or not.
        announced: files of which a client has asked how to send them: path -> (size, first bytes, "lfs" or "regular").
        parts: of large files that arrive in parts: SHA-256 -> number -> content.
    """

    def __init__(self, files: dict[str, File], is_private: bool = False):
        self.is_private = is_private
        self.commits: dict[str, dict[str, File]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {file.oid: file.content for file in files.values() if file.is_large}
        self.announced: dict[str, tuple[int, bytes, str]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.commit("main", files, "initial commit")

    @classmethod
    def of_folder(cls, folder: Path) -> Repository:
        """The files of a folder, also at the tag v1."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        repository = cls({p.relative_to(folder).as_posix(): File(p.read_bytes(), p.suffix in LARGE) for p in paths})
        repository.branches["v1"] = repository.branches["main"]
        return repository

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        parent = self.branches.get(branch, "")
        told = json.dumps([parent, message, {path: file.oid for path, file in files.items()}])
        name = hashlib.sha1(told.encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """Content of all files at a branch."""
        return {path: file.content for path, file in self.commits[self.branches[branch]].items()}
