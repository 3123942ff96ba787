"""Continues interrupted downloads of large files in the next run.

huggingface_hub continues a download within one run only: since 1.18 each download writes a file of its own and removes
it on failure (its pull request 4306), because on file systems that ignore locks two programs wrote to the same file.
Here a file is used only if its SHA-256 is right, so an ignored lock costs a download, but cannot damage a model.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from huggingface_hub import constants, file_download, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # not listed


def fetch_content(repository: str, name: str, commit: str, token: str | None) -> None:
    """Downloads the content of a large file to the hub cache, where `hf_hub_download` finds it.

    Does nothing for files that are there already, for small files, and for files in xet, the hub's chunked storage,
    whose downloads the library continues itself.

    Raises:
        Exception: any exception of the library. The part that has arrived is kept.
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
    lock = cache / ".locks" / folder / f"{digest}.lock"  # the lock that the library uses
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
        # A compressed transfer could not be continued in the middle.
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
    else:  # `hf_hub_download` starts again
        partial.unlink()
