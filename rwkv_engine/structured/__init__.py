"""Formats of generated texts: `model.generate(prompt, allowed_tokens=JsonSchema({...}))`."""

from __future__ import annotations

from rwkv_engine.structured.compiled import CompiledFormat, compiled
from rwkv_engine.structured.formats import Choice, Format, Grammar, JsonObject, JsonSchema, Regex
from rwkv_engine.structured.matcher import FormatError, Matcher, fill_masks
from rwkv_engine.structured.tool_calls import ToolCalls
from rwkv_engine.structured.vocabulary import StructuredOutputError

__all__ = [
    "Choice",
    "CompiledFormat",
    "Format",
    "FormatError",
    "Grammar",
    "JsonObject",
    "JsonSchema",
    "Matcher",
    "Regex",
    "StructuredOutputError",
    "ToolCalls",
    "compiled",
    "fill_masks",
]
