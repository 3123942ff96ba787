"""Fuzzes the reader of sealed states: any bytes, any content with a valid seal, and anything that was compressed in it.

    pip install atheris
    python -m tools.fuzz_states -max_total_time=60

Arguments are those of libFuzzer. It ends with an error if the reader raises anything but a refusal, or needs more than
512 MB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rwkv_engine.portable"]):
    from rwkv_engine.portable import Sealer, SealingKeys, StateRefused, content

import zstandard

from rwkv_engine import RWKV
from rwkv_engine.core import Snapshot, State

MODEL = RWKV.from_pretrained("tales")
SEALER = Sealer(SealingKeys([bytes(32)]), MODEL.config, MODEL.fingerprint, MODEL.tokenizer)
START = Snapshot(State.initial(MODEL.config), (1, 2), 1)


def sealed(packed: bytes) -> bytes:
    """What the sealer makes of content that is not a packed snapshot."""
    pack, SEALER._contents.pack = SEALER._contents.pack, lambda *_: packed  # type: ignore[method-assign]
    try:
        return SEALER.seal(START)
    finally:
        SEALER._contents.pack = pack  # type: ignore[method-assign]


def read(data: bytes) -> None:
    """Opens one input; its first byte tells where the rest stands."""
    kind, rest = sum(data[:1]) % 3, data[1:]
    if kind == 1:
        rest = sealed(rest)
    elif kind == 2:
        rest = sealed(zstandard.ZstdCompressor().compress(rest))
    try:
        SEALER.open(rest).state.check(MODEL.config, MODEL.fingerprint, 1)
    except StateRefused:
        return


def main() -> None:
    """Fuzzes until libFuzzer's limits are reached."""
    with tempfile.TemporaryDirectory() as folder:
        for name in content.DTYPES:
            packed = SEALER._contents.pack(START, name)
            unpacked = zstandard.ZstdDecompressor().decompress(packed)
            for kind, data in enumerate((SEALER.seal(START, dtype=name), packed, unpacked)):
                Path(folder, f"{name}-{kind}").write_bytes(bytes([kind]) + data)
        limits = ["-rss_limit_mb=2048", "-malloc_limit_mb=512", "-max_len=65536"]
        atheris.Setup([sys.argv[0], folder, *limits, *sys.argv[1:]], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
