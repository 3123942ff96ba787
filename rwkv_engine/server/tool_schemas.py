"""The parts of a conversation that are about tools, as OpenAI's protocol has them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from rwkv_engine.structured.tool_calls import NAME

MOST_TOOLS = 128

Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(strict=True)

    name: Name
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(None, description="The JSON schema of its arguments, an object.")
    strict: bool | None = Field(None, description="Has no effect: every schema is enforced, or refused.")


class Tool(BaseModel):
    """A tool; all of them are functions."""

    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """Names a function."""

    model_config = ConfigDict(strict=True)

    name: Name


class NamedTool(BaseModel):
    """Names the function that is to be called."""

    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: FunctionName


class FunctionCall(BaseModel):
    """A function and its arguments."""

    model_config = ConfigDict(strict=True)

    name: Name
    arguments: str = Field(description="A JSON object, as text.")

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, got: str) -> str:
        try:
            is_object = isinstance(json.loads(got), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ValueError("expected a JSON object, as text")
        return got


class ToolCall(BaseModel):
    """A call that the model has made."""

    model_config = ConfigDict(strict=True)

    id: Id
    type: Literal["function"]
    function: FunctionCall


Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)]
ToolCallList = Annotated[list[ToolCall], Field(max_length=MOST_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool
