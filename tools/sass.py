"""Reads machine code of GPUs as `nvdisasm -c` prints it."""

from __future__ import annotations

import re

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*([^;]*);")
REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")


def functions(text: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each kernel, by its mangled name, as (opcode, operands)."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in text.splitlines():
        if start := re.match(r"\.text\.(\S+):", line):
            current = found.setdefault(start[1], [])
        elif instruction := INSTRUCTION.search(line):
            current.append((instruction[1], instruction[2].strip()))
    return found


def loads_in_flight(instructions: list[tuple[str, str]]) -> int:
    """The largest number of 4-byte loads from global memory that begin before the first of them is waited for.

    Weights are loaded 16 bytes at a time, so they are not counted: these are the loads that prepare activations.
    """
    waiting: set[int] = set()
    most = 0
    for opcode, operands in instructions:
        is_load = re.fullmatch(r"LDG\.E(\.\w+)*", opcode) and not re.search(r"\.(64|128|U8|U16|S8|S16)\b", opcode)
        to, _, rest = operands.partition(",") if opcode.startswith("LDG") else ("", "", operands)
        used = {int(n) + i for n, wide in REGISTER.findall(rest) for i in range(2 if wide else 1)}
        if used & waiting:
            waiting.clear()
        if is_load and (target := REGISTER.search(to)):
            waiting.add(int(target[1]))
        most = max(most, len(waiting))
    return most
