"""Resumes downloads of large files that an earlier run left unfinished.

huggingface_hub resumes only within a run: since version 1.18 each download writes its own file and removes it on
failure (its pull request 4306), because on file systems that ignore locks two programs wrote into one shared file. Here
the SHA-256 of the finished file is checked, so an ignored lock costs a second download, never a broken model.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from huggingface_hub import constants, file_download, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # not listed


def fetch_content(repository: str, name: str, commit: str, token: str | None) -> None:
    """Downloads a large file into the hub cache, where `hf_hub_download` then finds it.

    Does nothing if the file is there already, is small, or is stored in xet (the hub's chunked storage), which resumes
    by itself.

    Raises:
        Exception: whatever the library raises. The part that has arrived is kept.
    """
    if isinstance(try_to_load_from_cache(repository, name, revision=commit), str):
        return
    url = hf_hub_url(repository, name, revision=commit)
    about = get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    by_xet = about.xet_file_data is not None and file_download.is_xet_available()  # type: ignore[attr-defined]
    digest = about.etag or ""
    if by_xet or about.size is None or not re.fullmatch("[0-9a-f]{64}", digest):
        return
    folder = file_download.repo_folder_name(repo_id=repository, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE)
    content = cache / folder / "blobs" / digest
    lock = cache / ".locks" / folder / f"{digest}.lock"  # the library's own
    for path in (content, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not content.exists():
            _go_on(url, content, about.size, token, name)


def _go_on(url: str, content: Path, size: int, token: str | None, name: str) -> None:
    partial = content.with_name(f"{content.name}.partial")
    with open(partial, "ab") as file:
        if file.tell() > size:
            file.seek(0)
            file.truncate()
        # A compressed response cannot be resumed in the middle.
        headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
        file_download.http_get(
            url, file, resume_size=file.tell(), headers=headers, expected_size=size, displayed_filename=name
        )
    digest = hashlib.sha256()
    with open(partial, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() == content.name:
        partial.replace(content)
    else:  # `hf_hub_download` will start again
        partial.unlink()
