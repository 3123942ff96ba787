"""The errors that a client sees: status codes and bodies as those of OpenAI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import log
from rwkv_engine.structured import FormatError

CLIENT_HAS_GONE = 499  # nobody receives it; it is for the log


class ApiError(Exception):
    """Ends a request with an error body.

    Attributes:
        status: the HTTP status.
        param: the name of the field of the body that caused it, if it was one.
        code: OpenAI's name of the error, for programs.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that describes the error."""
        kind = "invalid_request_error"
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        elif self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The response to the request."""
        return Json(self.body, self.status, self.headers)


class Json(JSONResponse):
    """A body of JSON, as `as_json` writes it."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return as_json(content).encode("ascii")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def as_json(content: Any) -> str:
    """JSON in ASCII on one line, as events need it.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    return _ENCODER.encode(content)


def of_request(error: RwkvError, fields: Sequence[str] = ()) -> ApiError:
    """The error for what a client asked for and the engine refused; `fields` are those of the body."""
    name = str(error).partition(":")[0]
    return ApiError(HTTPStatus.BAD_REQUEST, str(error), name if name in fields else None)


def of_model(error: Exception, request: str) -> ApiError:
    """Logs why a valid request could not be carried out, and gives the error for its client, who learns no details;
    except where the format that the client asked for was too complex."""
    if isinstance(error, FormatError):
        return ApiError(HTTPStatus.BAD_REQUEST, str(error), code="invalid_format")
    log.error("the model failed", exc_info=error, extra={"fields": {"id": request}})
    message = "the model failed; the server's log has the reason"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="model_failed")


def handle_errors(app: FastAPI) -> None:
    """Makes the application answer with such bodies whatever is wrong with a request."""

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RwkvError)
    async def of_engine(request: Request, error: RwkvError) -> Response:
        return of_request(error).response()

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = "there is nothing at this address; /openapi.json lists what there is"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = "this address takes another method; /openapi.json lists them"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        errors = error.errors()
        if errors[0]["type"] == "json_invalid":
            reason = f"{errors[0]['ctx']['error']} at character {errors[0]['loc'][-1]}"
            message = f"the body is not JSON: {reason}"
            return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_json").response()
        # Of a value that may be one of several types, the type that it is most like.
        depth = max(len(one["loc"]) for one in errors)
        deepest = [one for one in errors if len(one["loc"]) == depth]
        names = [str(part) for part in deepest[0]["loc"][1:] if part != "str" and _is_name(part)]
        if not names:
            message = "the body: expected a JSON object, with the header Content-Type: application/json"
            return ApiError(HTTPStatus.BAD_REQUEST, message).response()
        problems = dict.fromkeys(str(one["msg"]).removeprefix("Value error, ") for one in deepest)
        message = f"{'.'.join(names)}: {', or '.join(problems)}"
        return ApiError(HTTPStatus.BAD_REQUEST, message, names[0]).response()


def _is_name(part: str | int) -> bool:
    """Whether a part of a place is a field or an index, and not the name of a type, as those of classes are."""
    return isinstance(part, int) or (part.isidentifier() and not part[0].isupper())
