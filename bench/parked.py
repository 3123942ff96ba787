"""Measures the memory of parked conversations: texts that pause while others use the scheduler's slots.

    python -m bench.parked                         # 1,000 conversations with states of the 1B5 shape
    python -m bench.parked --text FILE [MODEL]     # what 16-bit states would lose, over a text

The first adds up what the process's memory grows by from when the slots are full until all conversations are paused
after a token each. Its model has 384 layers of width 128, whose state has as many numbers as that of 24 layers of width
2048 (1B5), and whose weights are a twentieth of that model's. The growth is compared with the bytes of the states.

The second reads 512 tokens, rounds the state, and compares the predictions of the next 64 tokens with those of the
state that was not rounded. States are never rounded by the scheduler, because a text would then depend on whether it
was put aside.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.core import State
from rwkv_engine.generation import Sampler, SamplingParams, TokenStream
from rwkv_engine.ops.linear import MOST_ROWS

SHAPE = "384,128,256"
READ, PREDICTED = 512, 64  # tokens


def resident() -> int:
    """The bytes of main memory that this process occupies, without those that it has freed; on Linux with glibc."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def parked(n: int) -> None:
    """Prints the memory of n conversations that are put aside."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        write_synthetic(path, parse_shape(SHAPE), torch.float32, 0.0)
        engine = RWKV.from_pretrained(path).engine
    streams = []

    def begin(number: int) -> None:
        streams.append(TokenStream(engine, [number % 256], Sampler(SamplingParams(seed=number)), 1000))
        next(streams[-1])

    for number in range(2 * MOST_ROWS):  # fills the slots, and allocates what a put-aside state needs besides itself
        begin(number)
    before = resident()
    for number in range(n):
        begin(number)
    grown = resident() - before
    state = engine.initial_state()
    size = sum(field.nbytes for field in [*state.fields.values(), state.position])
    print(f"{n} conversations: {grown / 1e6:,.1f} MB, {grown / n / 1e6:.3f} MB each; a state has {size / 1e6:.3f} MB")
    texts = [next(stream) for stream in streams]  # every one of them continues
    print(f"all {len(texts)} continued; then {(resident() - before) / 1e6:,.1f} MB")


def rounded(state: State, dtype: torch.dtype) -> State:
    """The state after storing it in another dtype."""
    fields = {name: field.to(dtype).float() for name, field in state.fields.items()}
    return State(fields, state.position, state.fingerprint)


def losses(model: RWKV, text: str) -> dict[str, dict[str, float]]:
    """What rounded states change in the predictions of what follows, by dtype: KL and cross-entropy in nats."""
    ids = torch.tensor(model.tokenizer.encode(text))
    found = {}
    for dtype in (torch.float16, torch.bfloat16):
        divergences, same, more = [], [], []
        for window in ids.unfold(0, READ + PREDICTED, READ + PREDICTED)[:100]:
            _, state = model.forward(window[:READ])
            inputs, targets = window[READ:-1], window[READ + 1 :, None]
            exact, other = (
                model.forward(inputs, each, full_output=True)[0].double().log_softmax(-1)
                for each in (state, rounded(state, dtype))
            )
            divergences.append((exact.exp() * (exact - other)).sum(-1))
            same.append((exact.argmax(-1) == other.argmax(-1)).double())
            more.append((exact - other).gather(-1, targets))
        kl = torch.cat(divergences)
        found[str(dtype).removeprefix("torch.")] = {
            "mean_kl": float(kl.mean()),
            "largest_kl": float(kl.max()),
            "same_best_token": float(torch.cat(same).mean()),
            "more_nats_per_token": float(torch.cat(more).mean()),
        }
    return found


def print_losses(found: dict[str, dict[str, float]]) -> None:
    table = Table("state", "mean KL, nats", "largest KL", "same best token", "more nats a token", box=box.MARKDOWN)
    for dtype, (mean, largest, same, more) in ((dtype, one.values()) for dtype, one in found.items()):
        table.add_row(dtype, f"{mean:.1e}", f"{largest:.1e}", f"{same:.2%}", f"{more:+.1e}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tales", help="with --text")
    parser.add_argument("--text", type=Path, help="a text to predict, long enough for some windows of 576 tokens")
    parser.add_argument("--conversations", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.text:
        print_losses(losses(RWKV.from_pretrained(arguments.model), arguments.text.read_text(encoding="utf-8")))
    else:
        parked(arguments.conversations)


if __name__ == "__main__":
    main()
