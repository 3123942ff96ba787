"""How a request asks for a format of its texts: OpenAI's `response_format`, or vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.server.errors import ApiError
from rwkv_engine.structured import Choice, Format, Grammar, JsonObject, JsonSchema, Regex
from rwkv_engine.structured.compiled import MOST_BYTES

Schema = dict[str, Any]
Name = Annotated[str, StringConstraints(pattern="^[a-zA-Z0-9_-]{1,64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_BYTES)]


class NamedSchema(BaseModel):
    """A schema as OpenAI wraps it."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    name: Name = Field(description="A name for the schema; has no effect.")
    description: str | None = Field(None, description="Has no effect.")
    schema_: Schema = Field(alias="schema", description="The JSON schema.")
    strict: bool | None = Field(None, description="Has no effect: every schema is enforced, or refused.")


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(strict=True, extra="allow")  # what is added is refused by `format_of`

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="With the type json_schema.")


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`: exactly one of the first five fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: Schema | Text | None = Field(None, alias="json", description="A JSON schema, or one as text.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: Text | None = Field(None, description="A regular expression, from the beginning to the end of the text.")
    choice: Annotated[list[Text], Field(min_length=1, max_length=10_000, fail_fast=True)] | None = Field(
        None, description="The possible texts."
    )
    grammar: Text | None = Field(None, description="A grammar in Lark or GBNF.")
    disable_any_whitespace: bool | None = Field(None, description="No white space between the parts of JSON.")


def format_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None) -> Format | None:
    """The format that a request asks for; None for any text.

    Raises:
        ApiError: it asks for none or several where one is expected, or for a schema that is not one (400).
    """
    if response_format and response_format.model_extra:
        name = next(iter(response_format.model_extra))
        expected = '{"type": "json_schema", "json_schema": {"name": NAME, "schema": SCHEMA}}'
        raise _wrong("response_format", f"has no field {shown(name)}; a schema is given as {expected}")
    typed = response_format is not None and response_format.type != "text"
    if typed and structured:
        raise _wrong("structured_outputs", "cannot be combined with response_format; leave out one of them")
    try:
        if response_format and typed:
            if response_format.type == "json_object":
                return JsonObject()
            if response_format.json_schema is None:
                raise _wrong("response_format", "needs json_schema, with a name and a schema")
            return JsonSchema(response_format.json_schema.schema_)
        return _of_vllm(structured) if structured else None
    except RequestError as error:
        raise _wrong("response_format" if typed else "structured_outputs", str(error)) from error


def _of_vllm(structured: StructuredOutputs) -> Format:
    given = [
        name
        for name, value in structured
        if name != "disable_any_whitespace" and value is not None and value is not False
    ]
    if len(given) != 1:
        raise _wrong("structured_outputs", "expected exactly one of json, json_object, regex, choice and grammar")
    is_compact = bool(structured.disable_any_whitespace)
    if structured.regex is not None:
        return Regex(structured.regex)
    if structured.choice is not None:
        return Choice(structured.choice)
    if structured.grammar is not None:
        return Grammar(structured.grammar)
    if structured.json_ is None:
        return JsonObject(is_compact)
    return JsonSchema(
        structured.json_ if not isinstance(structured.json_, str) else _parsed(structured.json_), is_compact
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"json: expected a schema: {error}") from error


def _wrong(param: str, problem: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"{param}: {problem}", param)
