"""The form that a request asks its texts to have: `response_format`, and `structured_outputs` as vLLM has it."""

from __future__ import annotations

import json
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rwkv_engine.pipeline import RWKV
from rwkv_engine.server.errors import ApiError

if TYPE_CHECKING:
    from rwkv_engine.structured import Grammar

Schema = dict[str, Any]


class JsonSchema(BaseModel):
    """A JSON schema as OpenAI's clients send it."""

    model_config = ConfigDict(strict=True)

    name: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")] = Field(description="Has no effect.")
    schema_: Schema = Field(default_factory=lambda: {"type": "object"}, alias="schema", description="The schema.")


class ResponseFormat(BaseModel):
    """What a text is to be."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"] = Field(description="Any text, a JSON object, or JSON.")
    json_schema: JsonSchema | None = Field(None, description="For the type json_schema.")

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("expected json_schema with the type json_schema, and only with that")
        return self


class StructuredOutputs(BaseModel):
    """One of several forms."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: Schema | str | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: str | None = Field(None, description="A regular expression, which matches the whole text.")
    choice: list[str] | None = Field(None, max_length=10_000, description="The possible texts.")
    grammar: str | None = Field(None, description="A grammar in llguidance's variant of Lark's syntax.")

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        if len(self.given()) != 1:
            raise ValueError("expected exactly one of json, json_object, regex, choice and grammar")
        return self

    def given(self) -> dict[str, Any]:
        """The form, by its name."""
        return {name: value for name, value in self.model_dump(by_alias=True).items() if value not in (None, False)}


def form_of(
    model: RWKV, response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Grammar | None:
    """The grammar that a request's texts must follow; None for any text. It may take a while.

    Raises:
        ApiError: the form cannot be enforced, or both are given (400).
    """
    is_any = response_format is None or response_format.type == "text"
    if is_any and structured_outputs is None:
        return None
    if not is_any and structured_outputs is not None:
        message = "structured_outputs: expected it or response_format, not both"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, "structured_outputs")
    if structured_outputs is not None:
        field, [(kind, value)] = "structured_outputs", structured_outputs.given().items()
    else:
        assert response_format is not None
        field, kind = "response_format", "json_object"
        value = None
        if response_format.json_schema is not None:
            kind, value = "json", response_format.json_schema.schema_
    try:
        return _compiled(model, kind, value if isinstance(value, str) else json.dumps(value), field)
    except ImportError as error:
        message = f"{field}: this server cannot enforce it, because {error.name} is not installed"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, field, "unsupported_parameter") from error


@lru_cache(maxsize=64)
def _compiled(model: RWKV, kind: str, value: str, field: str) -> Grammar:
    from rwkv_engine.structured import Grammar

    if kind == "regex":
        return Grammar.regex(model, value, field)
    if kind == "grammar":
        return Grammar(model, value, field)
    if kind == "choice":
        return Grammar.choice(model, json.loads(value), field)
    if kind == "json_object":
        return Grammar.json_object(model)
    try:
        schema = json.loads(value)
    except ValueError as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"{field}: the schema is not JSON", field) from error
    return Grammar.json_schema(model, schema, field)
