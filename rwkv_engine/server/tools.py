"""What a request allows the model to call, and how that restricts its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.schemas import ChatRequest, Message
from rwkv_engine.server.service import Service
from rwkv_engine.server.tool_schemas import NamedTool, Tool
from rwkv_engine.structured import CompiledFormat, JsonSchema, StructuredOutputError, ToolCalls, compiled
from rwkv_engine.text import Tokenizer
from rwkv_engine.text.templates import Template

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Calling:
    """What the model may call.

    Attributes:
        names: of the functions; none where it may not call any.
        is_required: whether it must.
        shown: the tools as a template gets them.
        format: restricts the text so that every call is valid; None where the package for it is not installed.
    """

    names: frozenset[str] = frozenset()
    is_required: bool = False
    shown: Sequence[Mapping[str, Any]] = ()
    format: CompiledFormat | None = None


def calling_of(service: Service, body: ChatRequest) -> Calling:
    """Checks what a request says about tools.

    Raises:
        ApiError: the template has no place for it, or a value is wrong (400), or a guarantee is asked for and the
            package for it is not installed (501).
    """
    tools, choice = body.tools or [], body.tool_choice or "auto"
    _require_place(service.template, body.messages, bool(tools))
    _require_calls(body.messages)
    if not tools:
        if choice not in ("auto", "none"):
            raise _wrong("tool_choice", f"got {_choice_name(choice)}, expected only with tools")
        return Calling()
    names = _names(tools)
    chosen = choice.function.name if isinstance(choice, NamedTool) else None
    if chosen is not None and chosen not in names:
        raise _wrong("tool_choice", f"got {shown(chosen)}, expected the name of one of the tools")
    if choice == "none":
        return Calling()
    _require_combinable(body, choice != "auto")
    callable_tools = [tool for tool in tools if chosen in (None, tool.function.name)]
    is_one = chosen is not None or body.parallel_tool_calls is False
    form = _format(service, tools, callable_tools, choice != "auto", is_one)
    if form is None and (choice != "auto" or is_one):
        field = "tool_choice" if choice != "auto" else "parallel_tool_calls"
        message = f"{field}: what it asks for needs an extra of the server: pip install 'rwkv-engine[structured]'"
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, message, field, "not_installed")
    found = frozenset(tool.function.name for tool in callable_tools)
    return Calling(found, choice != "auto", [_as_shown(tool) for tool in tools], form)


def _require_place(template: Template | JinjaTemplate, messages: Sequence[Message], has_tools: bool) -> None:
    if isinstance(template, JinjaTemplate) and template.takes_tools:
        return
    about = next((f"messages[{i}]" for i, m in enumerate(messages) if m.role == "tool" or m.tool_calls), None)
    if place := "tools" if has_tools else about:
        message = f"{place}: this server's template has no place for tools; start it with --template FILE.jinja, a"
        message += " template in Jinja that uses the variable tools"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, place.partition("[")[0], "unsupported_parameter")


def _require_calls(messages: Sequence[Message]) -> None:
    """Checks that every result of a tool is that of a call before it."""
    ids = set[str]()
    for i, message in enumerate(messages):
        ids |= {call.id for call in message.tool_calls or ()}
        if message.role == "tool" and message.tool_call_id not in ids:
            problem = f"tool_call_id: got {shown(message.tool_call_id)}, expected the id of a call in a message before"
            raise ApiError(HTTPStatus.BAD_REQUEST, f"messages[{i}].{problem}", "messages")


def _require_combinable(body: ChatRequest, is_required: bool) -> None:
    typed = body.response_format is not None and body.response_format.type != "text"
    for name, is_given in (
        ("response_format", typed),
        ("structured_outputs", body.structured_outputs is not None),
        ("logprobs", bool(body.logprobs)),
    ):
        if is_given:
            raise _wrong(name, "cannot be combined with tools; leave out one of them")
    if is_required and body.stop:
        raise _wrong("stop", "could end a call that tool_choice asks for; leave out one of them")


def _names(tools: Sequence[Tool]) -> set[str]:
    names = set[str]()
    for i, tool in enumerate(tools):
        if tool.function.name in names:
            raise _wrong(f"tools.{i}.function.name", f"got {shown(tool.function.name)} again, expected another name")
        names.add(tool.function.name)
    return names


def _parameters(tool: Tool) -> Mapping[str, Any]:
    return NO_PARAMETERS if tool.function.parameters is None else tool.function.parameters


def _format(
    service: Service, tools: Sequence[Tool], callable_tools: Sequence[Tool], is_required: bool, is_one: bool
) -> CompiledFormat | None:
    tokenizer, functions = service.model.tokenizer, {tool.function.name: _parameters(tool) for tool in callable_tools}
    ends = service.template.stop if is_required else ()
    try:
        form = ToolCalls(functions, required=is_required, most=1 if is_one else None, ends=ends)
        return compiled(tokenizer, form)  # type: ignore[arg-type]  # it has a hash
    except StructuredOutputError:
        return None
    except RequestError as error:
        raise _wrong(*_wrong_schema(tokenizer, tools, error), "invalid_format") from error


def _wrong_schema(tokenizer: Tokenizer, tools: Sequence[Tool], error: RequestError) -> tuple[str, str]:
    """Where a schema is that cannot be compiled, and why: what the library says about all of them has no place."""
    for i, tool in enumerate(tools):
        try:
            ToolCalls({tool.function.name: _parameters(tool)})
            compiled(tokenizer, JsonSchema(_parameters(tool)))  # type: ignore[arg-type]  # it has a hash
        except RequestError as own:
            return f"tools.{i}.function.parameters", str(own).removeprefix("json_schema: ").removeprefix("schema: ")
    return "tools", str(error).removeprefix("tool_calls: ")


def _as_shown(tool: Tool) -> dict[str, Any]:
    own = tool.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return {"type": "function", "function": own}


def _choice_name(choice: str | NamedTool) -> str:
    return shown(choice.function.name if isinstance(choice, NamedTool) else choice)


def _wrong(place: str, problem: str, code: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"{place}: {problem}", place.partition(".")[0], code)
