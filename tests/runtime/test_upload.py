"""Tensors on their way to a GPU: pieces are not filled again before they are copied."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from queues import Late

from rwkv_engine.runtime.upload import PIECES, Uploads


class Counted:
    """Ordinary memory in the place of page-locked memory, and the bytes of each allocation."""

    def __init__(self):
        self.sizes = []

    def __call__(self, nbytes):
        self.sizes.append(nbytes)
        return torch.full((nbytes,), 255, dtype=torch.uint8)


# Two GPUs: a CPU has an index too.
GPUS = [torch.device("cpu"), torch.device("cpu", 0)]


def uploads(lates: list[Late], piece: int) -> tuple[Uploads, Counted]:
    memory = Counted()
    return Uploads(lambda device: lates[GPUS.index(device)].copies, memory, piece), memory


@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=5),
    places=st.lists(st.sampled_from(GPUS), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.uint8]),
    piece=st.integers(4, 40).map(lambda n: 4 * n),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_copies_are_complete_whatever_the_pieces(shapes, places, dtype, piece, transposed, seed):
    lates = [Late(seed), Late(seed + 1)]
    upload, memory = uploads(lates, piece)
    wanted, copies = [], []
    for i, (shape, place) in enumerate(zip(shapes, places, strict=False)):
        tensor = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(i)).to(dtype)
        tensor = tensor.t() if transposed and tensor.ndim == 2 else tensor
        wanted.append(tensor.clone())
        copies.append(upload.copy(tensor, place))
        tensor.zero_()  # as a file's pages are released
    for late in lates:
        late.copies.run(len(late.copies.submitted))  # work on a GPU's stream comes after the copies
    assert all(map(torch.equal, copies, wanted))
    assert all(copy.dtype == dtype for copy in copies)
    assert memory.sizes == [piece] * PIECES, "the memory does not grow with the tensors"


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_what_needs_no_copy(shape):
    upload, memory = uploads([Late()], 8)
    for tensor in (torch.ones(shape), torch.ones(3)):
        assert upload.to(tensor, "cpu") is tensor
    assert upload.to(torch.ones(3, device="meta"), "meta").is_meta
    assert not memory.sizes
