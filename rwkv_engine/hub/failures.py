"""Messages for failures of the hub, for `download` and `upload`: one line that says what to do.

The library's own messages have several lines, and the exceptions of its transports differ between its versions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rwkv_engine.errors import RwkvError

LOG_IN = "log in with `hf auth login`, or give a token (token=, or HF_TOKEN in the environment)"
# The packages whose exceptions mean that there was no connection: the transports of huggingface_hub 2, 1 and earlier.
TRANSPORTS = ("httpx2", "httpx", "requests")
SHORTEST_SECRET = 8  # characters; a shorter string is not a token, and could be a part of any word


@dataclass(frozen=True)
class Advice:
    """The parts of messages that differ between download and upload.

    Attributes:
        missing: for a repository that does not exist.
        local: for a local file that cannot be read or written.
        remedy: what to do in that case.
        broken: what to do if the connection broke.
    """

    missing: str
    local: str
    remedy: str
    broken: str


def checked_token(token: str | None, kind: type[RwkvError]) -> str | None:
    """The given token; None for an empty one.

    Raises:
        RwkvError: of the class `kind`, if the token has characters that no token has. The transports would refuse it
            too, but with the token in the message.
    """
    if token and not re.fullmatch(r"[!-~]+", token):
        raise kind("the given token is invalid: expected one word of letters and digits, without spaces or line ends")
    return token or None


@contextmanager
def failures_reported(
    kind: type[RwkvError], subject: str, repository: str, revision: str | None, token: str | None, advice: Advice
) -> Iterator[None]:
    """Converts exceptions of the library to errors of the class `kind`, with a one-line message without the token."""
    try:
        yield
    except RwkvError:
        raise
    except Exception as error:
        message = f"{subject}: {_explain(innermost(error), repository, revision, advice)}"
        for secret in (token, os.environ.get("HF_TOKEN")):
            if secret and len(secret) >= SHORTEST_SECRET:
                message = message.replace(secret, "(token)")
        raise kind(message) from error


def innermost(error: Exception) -> Exception:
    """The original exception, if the library wrapped it in one about its cache or about a file."""
    while isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def is_no_answer(error: Exception) -> bool:
    """Whether the hub cannot be reached: there is no connection, no answer in time, or a server error."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or package in TRANSPORTS


def name_failure(error: Exception) -> str:
    """A short description of a failure for which `is_no_answer` is true."""
    if isinstance(error, HfHubHTTPError):
        return f"it answered {error.response.status_code}"
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(said: object) -> str:
    """The beginning of a message, on one line."""
    return " ".join(str(said).split())[:300] or "no answer"


def _explain(error: Exception, repository: str, revision: str | None, advice: Advice) -> str:
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"its owner grants access on request: ask at {hub}/{repository}, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return advice.missing
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {revision!r}; see {hub}/{repository}/commits/main"
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error, advice)
    if is_no_answer(error) or not isinstance(error, (OSError, ValueError)) or isinstance(error, JSONDecodeError):
        return f"{hub} cannot be reached, or the connection broke ({name_failure(error)}); {advice.broken}"
    if isinstance(error, OSError) and error.strerror:
        file = f" ({error.filename})" if error.filename else ""
        return f"{advice.local}: {error.strerror}{file}; {advice.remedy}"
    return f"{one_line(error)}; {advice.broken}"


def _explain_status(error: HfHubHTTPError, advice: Advice) -> str:
    hub, status = constants.ENDPOINT, error.response.status_code
    said = getattr(error, "server_message", None)
    quoted = f"; it says: {one_line(said)}" if said else ""
    if status in (401, 403):
        return f"{hub} refused access ({status}): the token is wrong or lacks permission; {LOG_IN}{quoted}"
    if status == 404 and not isinstance(error, EntryNotFoundError):
        return f"{advice.missing}{quoted}"
    if status in (409, 412):
        return f"{hub} answered {status}: someone else changed the repository meanwhile; run it again{quoted}"
    if status in (400, 413, 422):
        return f"{hub} refused the request ({status}){quoted}"
    return f"{hub} answered {status}; try again later{quoted}"
