"""Uploads a folder to a repository on the Hugging Face hub.

This uses `huggingface_hub` with its login, environment variables and progress bars, and xet, the hub's chunked storage,
if it is installed (`HF_HUB_DISABLE_XET` switches it off).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not listed
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    validate_repo_id,
)

from rwkv_engine.errors import HubError
from rwkv_engine.hub.failures import LOG_IN, Advice, checked_token, failures_reported

NOT_SENT = {".git", ".cache"}  # folders of git and of the hub's client, which the hub refuses
SILENCE = 300.0  # seconds; a commit of many files is answered after a minute


def upload(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Uploads all files of a folder in one commit and returns the URL at which they are.

    If anything fails, the repository stays as it was. Large files are sent one by one before the commit; if the upload
    is repeated, those that have arrived are not sent again. Files that are only in the repository are kept.

    Args:
        folder: its contents, including subfolders, are uploaded to the root of the repository.
        repo_id: `owner/name`, or `name` for a repository of your own. It is created if it does not exist.
        token: an access token with write permission. By default the one of the environment or of `hf auth login`.
        private: make the repository private if it is created. Otherwise it is public, unless its organisation has
            another default.
        revision: the branch, by default the main one. It is created from the main branch if it does not exist.
        message: the commit message.

    Raises:
        HubError: the folder does not exist or is empty, the name of the repository is invalid, there is no login or no
            access, or the hub failed or cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(
            f"{repo_id}: not a name of a repository; expected owner/name of letters, digits, -, _ and ."
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo_id}: cannot be uploaded offline; unset HF_HUB_OFFLINE")
    token = checked_token(token, HubError) or get_token()
    if token is None:
        raise HubError(f"{repo_id}: uploading needs a login; {LOG_IN}")
    advice = Advice(
        missing=f"no such owner or repository at {constants.ENDPOINT}: misspelt, or the token may not see it",
        local=f"{folder} cannot be read",
        remedy="nothing was committed",
        broken="the repository is as it was; run it again, files that arrived whole are not sent again",
    )
    with (
        failures_reported(HubError, repo_id, repo_id, revision, token, advice),
        _silence_limited(),
        _bars_on_terminals(),
    ):
        additions = _additions(folder)
        api = HfApi(token=token)
        repository = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        # False would make it public in an organisation that prefers private ones.
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision and not revision.startswith("refs/"):
            api.create_branch(repository, branch=revision, exist_ok=True)
        # Several at once would all be lost half way, and would keep Ctrl-C waiting for their threads.
        for addition in additions:
            api.preupload_lfs_files(repository, [addition], revision=revision, free_memory=False)
        # Not `upload_folder`, which may make several commits.
        api.create_commit(repository, additions, commit_message=message or "Upload RWKV-4 model", revision=revision)
    return f"{constants.ENDPOINT}/{repository}" + (f"/tree/{quote(revision, safe='')}" if revision else "")


def _additions(folder: Path) -> list[CommitOperationAdd]:
    if not folder.is_dir():
        raise HubError(f"{folder}: not a folder; expected one with the files to upload")
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    additions = [
        CommitOperationAdd(name.as_posix(), str(path)) for name, path in files.items() if not NOT_SENT & {*name.parts}
    ]
    if not additions:
        raise HubError(f"{folder}: has no files to upload")
    return additions


@contextmanager
def _silence_limited() -> Iterator[None]:
    """Limits the time without an answer from the server, for which the library would wait for ever."""
    session = get_session()
    before = getattr(session, "timeout", None)  # requests, which old versions go through, knows none
    session.timeout = SILENCE
    try:
        yield
    finally:
        session.timeout = before


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Shows the library's upload progress bars on terminals only, as it does with its download bars."""
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
