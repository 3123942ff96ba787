"""What went wrong with the hub, in one line that says what to do; for both directions, `download` and `upload`.

The library's own messages have several lines; its transports raise almost anything, and differ between its versions.
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
# The packages whose exceptions mean that there was no connection: those of huggingface_hub 2, 1 and before.
TRANSPORTS = ("httpx2", "httpx", "requests")
SHORTEST_SECRET = 8  # what is shorter is no token, and may stand in any word


@dataclass(frozen=True)
class Advice:
    """What the two directions say differently.

    Attributes:
        missing: the hub knows no such repository.
        local: what failed when a file of this machine could not be read or written.
        remedy: what to do about that.
        broken: what to do when the connection broke.
    """

    missing: str
    local: str
    remedy: str
    broken: str


def checked_token(token: str | None, kind: type[RwkvError]) -> str | None:
    """The token given; None for an empty one.

    Raises:
        RwkvError: of that kind: no token looks like this. The transports would say so too, and quote it.
    """
    if token and not re.fullmatch(r"[!-~]+", token):
        raise kind("the token given is none: expected one word of letters and digits; is there a space or a line end?")
    return token or None


@contextmanager
def failures_reported(
    kind: type[RwkvError], subject: str, repository: str, revision: str | None, token: str | None, advice: Advice
) -> Iterator[None]:
    """Turns whatever the library raises into an error of that kind: one line about the subject, without the token."""
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
    """What the library wrapped: in the news that the cache has no file either, or in the name of the file it sent."""
    while isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def is_no_answer(error: Exception) -> bool:
    """Whether the hub could not be asked: no connection, no answer in time, or it is in trouble itself."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or package in TRANSPORTS


def name_failure(error: Exception) -> str:
    """What kept the hub from answering, in few words."""
    if isinstance(error, HfHubHTTPError):
        return f"it answered {error.response.status_code}"
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(said: object) -> str:
    """The beginning of what was said, without line ends."""
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
