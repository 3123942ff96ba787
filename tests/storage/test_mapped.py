"""Packed files are written and mapped in such a way that their pages in memory can be huge."""

from __future__ import annotations

import io
import mmap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rwkv_engine.checkpoints import Checkpoint, packed
from rwkv_engine.convert.pack import pack
from rwkv_engine.storage import mapped

needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no huge pages"
)


def flags_of_mapping(path: Path) -> list[str]:
    """The flags of the only mapping of a file, such as "hg" where huge pages were asked for."""
    entries = Path("/proc/self/smaps").read_text().split("VmFlags:")
    (after,) = (entries[i + 1] for i, entry in enumerate(entries) if str(path) in entry)
    return after.splitlines()[0].split()


@needs_huge_pages
def test_an_opened_packed_file_is_mapped_in_huge_pages(tmp_path, tales):
    path = tmp_path / "packed.safetensors"
    pack(tales.source, path)
    with safe_open(path, framework="pt") as file:
        file.get_tensor("ln_out.weight")
        assert "hg" not in flags_of_mapping(path), "safetensors asks for them itself: the call is superfluous"
    checkpoint = Checkpoint.open(path)
    assert "hg" in flags_of_mapping(path), checkpoint.path


def test_memory_that_is_no_file_is_left_alone(monkeypatch):
    monkeypatch.setattr(mapped, "_advise", lambda *arguments: pytest.fail(f"advised {arguments}"))
    mapped.prefer_huge_pages(torch.ones(3))
    mapped.prefer_huge_pages(torch.ones(0))
    with mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        mapped.prefer_huge_pages(torch.frombuffer(memory, dtype=torch.uint8))


def test_each_write_of_a_packed_file_is_one_block(monkeypatch):
    class Disk(io.RawIOBase):
        written: list[bytes] = []  # noqa: RUF012 - one disk only

        def writable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def tell(self) -> int:
            return sum(map(len, self.written))

        def write(self, data) -> int:
            self.written.append(bytes(data))
            return len(data)

    monkeypatch.setattr(packed, "BLOCK", 4096)
    pieces = [bytes([i]) * size for i, size in enumerate((100, 3996, 4096, 5000, 0, 20000, 7))]
    with io.BufferedWriter(Disk(), packed.BLOCK) as file:
        for piece in pieces:
            packed._write_in_blocks(file, memoryview(piece))
    assert b"".join(Disk.written) == b"".join(pieces)
    assert [len(data) for data in Disk.written[:-1]] == [packed.BLOCK] * (len(Disk.written) - 1)
