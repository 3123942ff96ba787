"""Texts of a given form: JSON of a schema, regular expressions, grammars and choices (extra `structured`)."""

from rwkv_engine.structured.grammar import Grammar

__all__ = ["Grammar"]
