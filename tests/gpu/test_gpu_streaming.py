"""Streamed layers on a GPU: the bits of a model that is there completely, with and without CUDA graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from conftest import require_gpu
from oracle import Shape

from rwkv_engine import RWKV
from rwkv_engine.convert.pack import pack
from rwkv_engine.runtime.decoder import Decoder
from rwkv_engine.runtime.graph import eager
from rwkv_engine.runtime.upload import Uploads
from rwkv_engine.storage.page_locked import page_locked

pytestmark = pytest.mark.gpu
require_gpu()
# Layers of 27 MB in float16, so that copies take longer than layers.
SHAPE = Shape(n_layer=6, n_embd=1024, n_att=1024, n_ffn=4096, n_vocab=200)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_pth(oracle.random_weights(SHAPE), tmp_path_factory.mktemp("streaming") / "m.pth", torch.float16)


def test_memory_is_really_page_locked(cuda):
    torch.zeros(1, device=cuda)
    for _ in range(2):  # the second time at an address that may have been locked before
        memory = page_locked((5 << 20) + 3, torch.device(cuda))
        assert memory.is_pinned()
        assert not memory.any()
        del memory


@pytest.mark.parametrize("size", [1, 1000, (32 << 20) + 5, 100 << 20])
def test_uploads(size, cuda):
    tensor = torch.randint(0, 255, (size,), dtype=torch.uint8)
    assert torch.equal(Uploads().to(tensor, cuda).cpu(), tensor)


@pytest.mark.parametrize("word", ["fp32", "fp16", "bf16", "fp16i8", "fp16i4"])
@pytest.mark.parametrize("resident", [0, 1, 3])
def test_logits_have_the_same_bits(word, resident, path, cuda):
    """A prompt, steps by CUDA graphs (the default), and eager steps."""
    plain = RWKV.from_pretrained(path, f"{cuda} {word}")
    model = RWKV.from_pretrained(path, f"{cuda} {word} *{resident}+")
    assert model.engine.model.streaming is not None
    tokens = torch.randint(0, SHAPE.n_vocab, (2, 300), generator=torch.Generator().manual_seed(0))
    expected, state = plain.forward(tokens)
    logits, own = model.forward(tokens)
    assert torch.equal(logits, expected)
    decoder = Decoder(model.engine.model, capture=eager)
    slots = decoder.pool.take(own)
    for _ in range(20):
        ids = expected.argmax(-1)
        expected, state = plain.forward(ids.unsqueeze(1), state)
        logits, own = model.forward(ids.unsqueeze(1), own)
        assert torch.equal(logits, expected)
        assert torch.equal(decoder.step(ids, slots), expected)


def test_packed_files(path, tmp_path, cuda):
    packed = tmp_path / "packed.safetensors"
    pack(path, packed, "cpu fp16i8")
    plain = RWKV.from_pretrained(packed, f"{cuda} fp16i8")
    model = RWKV.from_pretrained(packed, f"{cuda} fp16i8 *2+")
    expected, _ = plain.forward([1, 2, 3])
    assert torch.equal(model.forward([1, 2, 3])[0], expected)


def test_threads_and_streams(path, cuda):
    """Four threads with streams of their own, with prompts beside replayed graphs."""
    plain, model = (RWKV.from_pretrained(path, f"{cuda} fp16{plus}") for plus in ("", " *1+"))

    def read(which: RWKV, first: int) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream(cuda)):
            logits, state = which.forward([first, 2, 3])
            for _ in range(10):
                logits, state = which.forward([int(logits.argmax())], state)
            return logits.cpu()

    expected = [read(plain, first) for first in range(4)]
    for which in range(4):  # captures before the threads begin
        model.forward([which])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda first: read(model, first), range(4)))
    assert all(map(torch.equal, found, expected))


def test_steady_steps_allocate_no_memory_of_the_gpu(path, cuda):
    model = RWKV.from_pretrained(path, f"{cuda} fp16 *1+")
    _, state = model.forward([1, 2, 3])
    for _ in range(3):
        _, state = model.forward([4], state)
    before = torch.cuda.memory_stats(cuda)
    for _ in range(20):
        _, state = model.forward([4], state)
    after = torch.cuda.memory_stats(cuda)
    for name in ("num_device_alloc", "num_alloc_retries", "reserved_bytes.all.current"):
        assert after[name] == before[name]


def test_the_memory_that_the_plan_names(path, cuda):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(cuda)
    model = RWKV.from_pretrained(path, f"{cuda} fp16 *0+")
    planned = model.strategy.nbytes(model.config)
    assert torch.cuda.memory_allocated(cuda) - before < 1.1 * planned[cuda] + (1 << 20)
