"""Downloads models by their hub id: `owner/name`, or `owner/name/FILE.pth` for one file of a repository.

Only what a model needs is downloaded: the configuration, the tokenizer and the weights in one format. The cache, login,
environment variables and progress bars (on standard error, if it is a terminal) are those of `huggingface_hub`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not listed

from rwkv_engine.errors import CheckpointError
from rwkv_engine.hub.failures import LOG_IN, Advice, checked_token, failures_reported, is_no_answer, name_failure
from rwkv_engine.hub.resume import fetch_content
from rwkv_engine.notices import log

BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "20B_tokenizer.json",
    "rwkv_vocab_v20230424.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SUFFIXES = (".pth", ".safetensors", ".bin")
ONCE_ONLINE = "run it once without offline=True (--offline, HF_HUB_OFFLINE) to download it"


def parse_id(model: str) -> tuple[str, str | None] | None:
    """The repository and the file of a hub id; None if the name can only be a path."""
    owner, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    if not name or name.endswith(SUFFIXES) or (file and not file.endswith(SUFFIXES)) or rest.endswith("/"):
        return None
    try:
        validate_repo_id(f"{owner}/{name}")
    except HFValidationError:
        return None
    return f"{owner}/{name}", file or None


def download(
    model: str, revision: str | None = None, token: str | None = None, offline: bool = False, weights: bool = True
) -> Path:
    """Downloads a model to the hub cache, if it is not there, and returns its path, as `Checkpoint.open` takes it.

    If the hub cannot be reached, the files in the cache are used, and a notice says so.

    Args:
        model: a hub id, see `parse_id`.
        revision: a branch, tag or commit; by default the main branch.
        token: for private and gated repositories; by default the one of the environment or of `hf auth login`.
        offline: use the cache only and contact no server; `HF_HUB_OFFLINE` does the same.
        weights: if false, only the other files are downloaded, and the path is that of the directory; if there are no
            other files, the weights are downloaded nevertheless.

    Raises:
        CheckpointError: the repository, revision or file does not exist, there are no weights in it, there is no access
            or no space, or the hub cannot be reached and the cache is incomplete; with `offline`, the model is not in
            the cache.
    """
    parsed = parse_id(model)
    if parsed is None:
        raise CheckpointError(f"{model}: not a hub id; expected owner/name or owner/name/FILE.pth")
    repository, file = parsed
    token = checked_token(token, CheckpointError)
    if offline or constants.HF_HUB_OFFLINE:
        return _from_cache(model, repository, file, revision, weights)
    hub = constants.ENDPOINT
    advice = Advice(
        missing=f"no such path here, and no such repository at {hub}: misspelt, or private; if it is private, {LOG_IN}",
        local=f"the hub cache {constants.HF_HUB_CACHE} cannot be written",
        remedy="HF_HOME may name another",
        broken="run it again, files that arrived whole are kept; offline=True (--offline) uses what the cache holds",
    )
    with failures_reported(CheckpointError, model, repository, revision, token, advice):
        try:
            # This first request reveals nearly everything that can be wrong, and has a time limit of seconds.
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            info = HfApi().model_info(repository, revision=revision, token=token, timeout=timeout)
        except Exception as error:
            cached = _whole_from_cache(model, repository, file, revision, weights) if is_no_answer(error) else None
            if cached is None:
                raise
            log.warning(f"{model}: {hub} cannot be reached ({name_failure(error)}); using the files in the hub cache")
            return cached
        needed, opened = _choose(model, {sibling.rfilename for sibling in info.siblings or []}, file, weights)
        folders = set()
        for name in needed:
            if name.endswith(SUFFIXES):
                fetch_content(repository, name, info.sha or "main", token)
            path = Path(hf_hub_download(repository, name, revision=revision, token=token))
            folders.add(path.parents[name.count("/")])
    if {folder.name for folder in folders} != {info.sha}:
        # This also happens if a file of the cache was used in place of one that could not be requested.
        raise CheckpointError(f"{model}: the repository changed while it was downloaded; run it again")
    return folders.pop() / opened


def _from_cache(model: str, repository: str, file: str | None, revision: str | None, weights: bool) -> Path:
    try:
        # An empty list of patterns means that no file is required; `_choose` checks what is there.
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(f"{model}: not in the hub cache {constants.HF_HUB_CACHE}{at}; {ONCE_ONLINE}") from error
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    try:
        return folder / _choose(model, names, file, weights)[1]
    except CheckpointError as error:
        raise CheckpointError(f"{error}; these are the files in the hub cache: {ONCE_ONLINE}") from error


def _whole_from_cache(
    model: str, repository: str, file: str | None, revision: str | None, weights: bool
) -> Path | None:
    """The path that `_from_cache` finds; None if there is none or shards are missing."""
    try:
        path = _from_cache(model, repository, file, revision, weights)
        shards = {
            shard
            for index in path.glob("*.index.json")
            for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        }
    except (CheckpointError, OSError, ValueError, LookupError):
        return None
    return path if all((path / shard).exists() for shard in shards) else None


def _choose(model: str, names: set[str], file: str | None, weights: bool) -> tuple[list[str], str]:
    """The files of a repository that a model needs, and the one to open, or "." for the directory.

    The order of formats is the one in which `Checkpoint.open` looks for them in a directory.
    """
    beside = [name for name in BESIDE if name in names]
    if beside and not weights:
        return beside, "."
    if file:
        if file not in names:
            raise CheckpointError(f"{model}: the repository has no {file}; it has {_some(names)}")
        return [*beside, file], file
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if stem + suffix in names:
            return [*beside, stem + suffix], "."
        if f"{stem}{suffix}.index.json" in names:
            shards = sorted(name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\{suffix}", name))
            return [*beside, f"{stem}{suffix}.index.json", *shards], "."
    raw = sorted(name for name in names if name.endswith((".pth", ".safetensors")) and "/" not in name)
    if len(raw) == 1:
        return [*beside, *raw], raw[0]
    if not raw:
        raise CheckpointError(
            f"{model}: expected model.safetensors, pytorch_model.bin or a .pth file; the repository has {_some(names)}"
        )
    raise CheckpointError(f"{model}: has {len(raw)} models: {_some(raw)}; name one of them, such as {model}/{raw[0]}")


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return (", ".join(listed[:5]) or "no files") + more
