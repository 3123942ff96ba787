"""Measures what rounding costs a model whose activations are dominated by one large channel.

    python -m bench.outliers --strategy "cpu bf16" --strategy "cpu fp32i8"

One channel of every LayerNorm, and of every value and key matrix that feeds a product, is multiplied, in a copy of the
embedded model `tales`. Losses and divergences, in a text of the unchanged model, are shares of the nats of the changed
one in float32. The last lines round matrices only, to bfloat16 or to 8 bits row by row, and compute in float32.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rwkv_engine import RWKV, Checkpoint
from rwkv_engine.evaluation import compare, write

CHANNEL = 100
PRODUCERS = ("ln1.weight", "att.value.weight", "ln2.weight", "ffn.key.weight", "ln_out.weight")
MATRICES = ("att.key", "att.value", "att.receptance", "att.output", "ffn.key", "ffn.receptance", "ffn.value", "head")


def to_int8(matrix: Tensor) -> Tensor:
    """A matrix rounded to 8 bits, with one scale for each row."""
    scale = matrix.abs().amax(dim=1, keepdim=True) / 127
    return (matrix / scale).round() * scale


def rounded(
    tensors: dict[str, Tensor], rounding: Callable[[Tensor], Tensor], names: tuple[str, ...] = MATRICES
) -> dict[str, Tensor]:
    """The tensors with the matrices of these names rounded."""
    ends = tuple(f"{name}.weight" for name in names)
    return {name: rounding(tensor) if name.endswith(ends) else tensor for name, tensor in tensors.items()}


def models(tensors: dict[str, Tensor], strategies: list[str], path: Path) -> Iterator[tuple[str, RWKV]]:
    """The models to compare, by what they are called."""
    for strategy in strategies:
        torch.save(tensors, path)
        yield strategy, RWKV.from_pretrained(path, strategy)
    torch.save(rounded(tensors, lambda matrix: matrix.bfloat16().float()), path)
    yield "matrices rounded to bfloat16", RWKV.from_pretrained(path)
    for name in MATRICES:
        torch.save(rounded(tensors, to_int8, (name,)), path)
        yield f"{name} rounded to 8 bits", RWKV.from_pretrained(path)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", action="append", help="default: bf16, fp16, int8 and int4 on the CPU")
    parser.add_argument("--factor", type=float, default=50)
    parser.add_argument("--tokens", type=int, default=1024, help="the length of the text")
    args = parser.parse_args()
    strategies = args.strategy or ["cpu bf16", "cpu fp16", "cpu fp32i8", "cpu fp32i4"]
    tales = RWKV.from_pretrained("tales")
    ids = write(tales, args.tokens, seed=0)
    checkpoint = Checkpoint.open(tales.source)
    tensors = {name: checkpoint.read(name).float().clone() for name in checkpoint.names}
    for name, tensor in tensors.items():
        if name.endswith(PRODUCERS):
            tensor[CHANNEL] *= args.factor
    table = Table("", "loss", "divergence", box=box.MARKDOWN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        torch.save(tensors, path)
        exact = RWKV.from_pretrained(path)
        for label, model in models(tensors, strategies, path):
            found = compare(exact, model, ids)
            nats = found.reference_nats
            table.add_row(label, f"{found.tested_nats / nats - 1:.2%}", f"{found.mean * found.n_tokens / nats:.2%}")
    print(f"{nats / found.n_tokens:.2f} nats a token in float32")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
