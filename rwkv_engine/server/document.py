"""What `/openapi.json` says of answers: their statuses, headers and types of content."""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]

_NULLABLE = {"type": ["string", "null"]}
_FIELDS = {"message": {"type": "string"}, "type": {"type": "string"}, "param": _NULLABLE, "code": _NULLABLE}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": list(_FIELDS), "properties": _FIELDS}},
}
# Of an event, whose data is a JSON object in the form of OpenAI's chunks, or [DONE].
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
_CHALLENGE = {"WWW-Authenticate": {"description": "How to give a key.", "schema": {"type": "string"}}}
_ID = {"X-Request-Id": {"description": "The id of the request in the log.", "schema": {"type": "string"}}}


def _refused(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "headers": _ID | (headers or {}),
        "content": {"application/json": {"schema": _ERROR}},
    }


# Of every address, because a server may be loading, or have keys.
ERRORS: Responses = {
    400: _refused("A value is wrong, too large or not supported."),
    401: _refused("No valid API key was given.", _CHALLENGE),
    404: _refused("There is no such address or model."),
    "4XX": _refused("The request is refused; error.message says why."),  # also keeps out the 422 of FastAPI
    408: _refused("The body did not arrive in time."),
    413: _refused("The body is too large."),
    429: _refused("The server, or the key, is busy.", _RETRY),
    500: _refused("The model failed."),
    503: _refused("The model is loaded, the server ends, or the time was over.", _RETRY),
}
# Of addresses that stream if the request asks for it.
STREAM: Responses = {
    200: {
        "description": "The texts; piece by piece if the request has `stream`.",
        "headers": _ID,
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}
