"""Draws docs/plan.svg: where strategies place the layers of a model, computed by `Strategy`.

python tools/draw_plan.py
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

from rwkv_engine import Rwkv4Config, Strategy

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "plan.svg"
RAVEN_1B5 = Rwkv4Config(n_layer=24, n_embd=2048, n_att=2048, n_ffn=8192, n_vocab=50277)
STRATEGIES = (
    "cpu fp32",
    "cuda fp16 *10 -> cpu fp32",
    "cuda:0 fp16i8 *8 -> cuda:0 fp16 *8 -> cuda:1 fp16 *5 -> cpu fp32",
)
TITLE = "Where three strategies place a model of 1.5 billion parameters (24 layers and the head)"
CAPTION = (
    "A token passes the layers from left to right. Sizes are those of the weights; layer 0 includes the embedding."
)
# A colour for each device and precision, dark enough for white letters.
COLOURS = {
    ("cpu", "float32"): "#455a64",
    ("cuda", "float16"): "#2e7d32",
    ("cuda", "float16, i8 weights"): "#8d6e00",
    ("cuda:1", "float16"): "#1565c0",
}
CELL, HEIGHT, LEFT, TOP, STEP = 34, 34, 12, 74, 118


def picture() -> str:
    """The whole SVG file."""
    width = 2 * LEFT + CELL * (RAVEN_1B5.n_layer + 1)
    height = TOP + STEP * len(STRATEGIES)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
        text(LEFT, 26, TITLE, size=15, weight="bold"),
        text(LEFT, 46, CAPTION, fill="#555"),
    ]
    for i, strategy in enumerate(STRATEGIES):
        parts += plan(strategy, TOP + STEP * i)
    return "\n".join([*parts, "</svg>", ""])


def plan(strategy: str, y: int) -> list[str]:
    """One strategy: a cell for each layer, and a few lines of text for each segment."""
    parsed = Strategy.parse(strategy)
    parts = [text(LEFT, y + 12, strategy, family="monospace", size=14)]
    first = 0
    for share, row in zip(parsed.shares(RAVEN_1B5), parsed.explain(RAVEN_1B5), strict=True):
        layers, device, precision, size, _ = row  # free memory depends on the machine
        colour = COLOURS[device.removesuffix(":0"), precision]
        for i in range(first, first + len(share)):
            label = str(i) if i < RAVEN_1B5.n_layer else "head"
            x = LEFT + CELL * i
            box = f'x="{x + 1}" y="{y + 20}" width="{CELL - 2}" height="{HEIGHT}" rx="3"'
            parts.append(f'<rect {box} fill="{colour}"/>')
            letters = 12 if i < RAVEN_1B5.n_layer else 10  # "head" needs more room than a number
            parts.append(text(x + CELL // 2, y + 42, label, size=letters, fill="#fff", anchor="middle"))
        x = LEFT + CELL * first + 1
        words = (f"{device}, {precision}", f"layers {layers}", size)
        parts += [text(x, y + 70 + 15 * i, word, fill=colour) for i, word in enumerate(words)]
        first += len(share)
    return parts


def text(
    x: int,
    y: int,
    words: str,
    size: int = 12,
    fill: str = "#111",
    anchor: str = "start",
    weight: str = "normal",
    family: str = "sans-serif",
) -> str:
    """One line of text with its baseline at `y`."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
        f' font-family="{family}">{escape(words)}</text>'
    )


if __name__ == "__main__":
    OUTPUT.write_text(picture(), encoding="utf-8")
    sys.stdout.write(f"{OUTPUT}\n")
