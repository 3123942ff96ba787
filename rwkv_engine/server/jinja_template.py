"""Chat templates in Jinja, as Hugging Face's tokenizers have them, from a file that whoever starts the server names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rwkv_engine.checks import SHOWN
from rwkv_engine.errors import RequestError
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.schemas import Message
from rwkv_engine.text import Tokenizer

MOST_CHARACTERS = 2**22
MOST_SECONDS = 2.0


class _Refused(TemplateError):
    """What `raise_exception` raises."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Reaches nothing outside of a template, and stops one that computes for too long or makes too long a text.

    The clock is looked at with every call and every part of the text. That bounds what messages can make of a template
    which its author means well; a filter such as `center` still makes as long a string as a template asks for.
    """

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters["tojson"] = _as_json
        self.until = float("inf")

    def require_time(self) -> None:
        """Checks that the time is not over."""
        if time.monotonic() > self.until:
            raise SecurityError(f"it takes longer than {MOST_SECONDS:g} seconds")

    def call(self, context: Context, obj: Any, /, *arguments: Any, **options: Any) -> Any:
        """Calls something for a template."""
        self.require_time()
        return super().call(context, obj, *arguments, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiplies or raises to a power; the results cannot be large."""
        if operator == "**" or not all(isinstance(n, (int, float)) and abs(n) < 2**64 for n in (left, right)):
            raise SecurityError(f"{operator} is for multiplying numbers only")
        return left * right


class JinjaTemplate:
    """A chat template, with the variables and functions that those of Hugging Face get.

    Attributes:
        name: the file's name.
        stop: strings that end a reply, in addition to the end-of-text token.
        takes_tools: whether it tells the model of tools: it uses the variable `tools`.
    """

    def __init__(self, source: str, name: str, stop: Sequence[str] = ()):
        """Compiles a template.

        Raises:
            RequestError: it is not one.
        """
        self.name, self.stop, self._source = name, tuple(stop), source
        try:
            sandbox = _Sandbox()
            sandbox.from_string(source)
            self.takes_tools = "tools" in meta.find_undeclared_variables(sandbox.parse(source))
        except TemplateSyntaxError as error:
            raise RequestError(
                f"template: {name}, line {error.lineno}: not a Jinja template: {error.message}"
            ) from error

    @classmethod
    def read(cls, path: Path, stop: Sequence[str] = ()) -> JinjaTemplate:
        """Reads a template from a UTF-8 file.

        Raises:
            RequestError: the file cannot be read, or is not a template.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), path.name, stop)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise RequestError(f"template: {path} cannot be read: {reason}") from error

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The conversation as the model reads it, up to the reply.

        Args:
            messages: the conversation.
            tokenizer: of the model.
            tools: what the model may call, in OpenAI's form.

        Raises:
            ApiError: the template refuses these messages, or fails (400).
        """
        end = next((name for name, token in tokenizer.special_tokens.items() if token == tokenizer.end_of_text), "")
        variables = {
            "messages": _variables_of(messages),
            "tools": list(tools) or None,
            "add_generation_prompt": True,
            "bos_token": end,
            "eos_token": end,
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        sandbox = _Sandbox()  # one for each text, because it has the clock
        template = sandbox.from_string(self._source)
        sandbox.until = time.monotonic() + MOST_SECONDS
        try:
            return _joined(template.generate(**variables), sandbox.require_time)
        except Exception as error:  # whatever a template raises, it is because of these messages
            problem = str(error)[: 4 * SHOWN]
            raise ApiError(
                HTTPStatus.BAD_REQUEST, f"messages: the template {self.name} refuses them: {problem}", "messages"
            ) from error


def _variables_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: arguments of calls are objects, and a tool's result has the tool's name."""
    names, found = dict[str | None, str](), list[dict[str, Any]]()
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        variables: dict[str, Any] = {"role": role, "content": message.text}
        if message.tool_calls:
            variables["tool_calls"] = calls = [call.model_dump() for call in message.tool_calls]
            for call in calls:
                names[call["id"]] = call["function"]["name"]
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if message.role == "tool":
            variables |= {"tool_call_id": message.tool_call_id, "name": names.get(message.tool_call_id, "")}
        found.append(variables)
    return found


def _joined(parts: Any, require_time: Callable[[], None]) -> str:
    text, n = [], 0
    for part in parts:
        require_time()
        text.append(part)
        n += len(part)
        if n > MOST_CHARACTERS:
            raise SecurityError(f"it makes a text of more than {MOST_CHARACTERS} characters")
    return "".join(text)


def _refuse(message: str) -> None:
    raise _Refused(message)


def _as_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """JSON without the escapes of Jinja's own, which are for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
