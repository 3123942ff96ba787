"""Models with streamed layers give the bits of the same models without them, on every path that a program takes."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import oracle
import oracle7
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from queues import Late, play
from tape import tape
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_engine import RWKV, Checkpoint, State, Strategy, StrategyError
from rwkv_engine.caching.state_identity import identity_of
from rwkv_engine.convert.pack import pack
from rwkv_engine.core.strategy_grammar import Segment
from rwkv_engine.models.dense import checkpoint_tensors, make_dense
from rwkv_engine.runtime import Decoder, Engine, load_model
from rwkv_engine.runtime.moving import move_model
from rwkv_engine.runtime.streamed import ALIGNMENT

SHAPE = Shape(n_layer=5, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)
SHAPE7 = oracle7.Shape(n_layer=4, n_head=3, head_size=32, n_ffn=136, n_vocab=101)
WORDS = ["fp32", "bf16", "fp16", "fp32i8", "bf16i4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    save_pth(oracle.random_weights(SHAPE), folder / "4.pth")
    torch.save(
        {name: torch.from_numpy(w).float() for name, w in oracle7.random_weights(SHAPE7).items()}, folder / "7.pth"
    )
    return folder


def strategy(word: str, resident: int) -> Strategy:
    """`cpu WORD *N+`, which the grammar refuses: a CPU in the place of a GPU."""
    return Strategy.of([Segment("cpu", word[:4], word[4:] or "dense", count=resident, streams=True)])


def streamed(path, word: str, resident: int = 1, seed: int = 0) -> tuple[RWKV, Late]:
    late, chosen = Late(seed), strategy(word, resident)
    model = load_model(Checkpoint.open(path), chosen, streams_to=late.device())
    late.watch(model.streaming)
    plain = RWKV.from_pretrained(path, f"cpu {word}")
    return RWKV(Engine(model, chunk=8), chosen, plain._tokenizer, path), late


def check(late: Late) -> None:
    """The buffers hold what they should in other orders of what was submitted too."""
    for hurry in (0.0, 0.03, 0.5, 0.97, 1.0):
        play(late, random.Random(0), hurry)


def assert_states_equal(one: State, other: State) -> None:
    for name, field in one.fields.items():
        assert torch.equal(field, other.fields[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("file", "resident"), [("4.pth", 0), ("4.pth", 3), ("7.pth", 0), ("7.pth", 1)])
def test_logits_and_states_have_the_same_bits(word, file, resident, folder):
    """A prompt in several chunks, and steps, by `Engine.forward`."""
    plain = RWKV.from_pretrained(folder / file, f"cpu {word}")
    plain.engine.chunk = 8
    model, late = streamed(folder / file, word, resident)
    tokens = torch.randint(0, 101, (3, 19), generator=torch.Generator().manual_seed(0))
    expected, state = plain.forward(tokens, full_output=True)
    logits, own = model.forward(tokens, full_output=True)
    assert torch.equal(logits, expected)
    for _ in range(3):
        tokens = expected.reshape(3, -1, 101)[:, -1].argmax(-1, keepdim=True)
        expected, state = plain.forward(tokens, state)
        logits, own = model.forward(tokens, own)
        assert torch.equal(logits, expected)
    assert_states_equal(own, state)
    check(late)


@pytest.fixture(scope="module")
def tales():
    return RWKV.from_pretrained("tales", "cpu fp32i8")


@pytest.mark.slow
def test_texts_batches_and_vectors_are_the_same(tales):
    """`generate` alone and for many, with drafts, log-probabilities through `stream`, and `embed`."""
    model, late = streamed(tales.source, "fp32i8", 2)
    for arguments in ({"temperature": 0}, {"seed": 3, "top_p": 0.9}, {"temperature": 0, "drafts": 4}):
        expected = tales.generate("Once upon a time", max_new_tokens=12, **arguments)
        assert model.generate("Once upon a time", max_new_tokens=12, **arguments) == expected
    prompts = ["Once", "Lily and Tom went to the park.", "The dog", "One day a"]
    assert model.generate(prompts, max_new_tokens=8, seed=1) == tales.generate(prompts, max_new_tokens=8, seed=1)
    assert torch.equal(model.embed(prompts), tales.embed(prompts))
    check(late)


@pytest.mark.slow
@pytest.mark.parametrize("capture", [None, tape])
@pytest.mark.parametrize("file", ["4.pth", "7.pth"])
def test_the_decoder_and_its_recordings(capture, file, folder):
    """Steps of a pool, eager and recorded as a CUDA graph is, with a prompt between two of them."""
    plain = RWKV.from_pretrained(folder / file, "cpu fp32")
    model, late = streamed(folder / file, "fp32", 1)
    decoder, own = Decoder(plain.engine.model), Decoder(model.engine.model, capture=capture)
    for _ in range(3):
        tokens = torch.tensor([5, 6, 7])
        assert torch.equal(own.step(tokens, [0, 2, 1]), decoder.step(tokens, [0, 2, 1]))
        prompt = torch.arange(9).unsqueeze(0)
        assert torch.equal(model.forward(prompt)[0], plain.forward(prompt)[0])
    assert_states_equal(own.pool.read([0, 1, 2]), decoder.pool.read([0, 1, 2]))
    if capture is None:  # a recording submits nothing when it is replayed
        check(late)


def test_threads_take_turns(folder):
    """Prompts and steps of four threads, each with a sequence of its own, share the two buffers."""
    plain = RWKV.from_pretrained(folder / "4.pth", "cpu fp32")
    model, late = streamed(folder / "4.pth", "fp32", 0)

    def read(which: RWKV, first: int) -> torch.Tensor:
        logits, state = which.forward([first, 2, 3])
        for _ in range(6):
            logits, state = which.forward([int(logits.argmax())], state)
        return logits

    expected = [read(plain, first) for first in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda first: read(model, first), range(4)))
    assert all(map(torch.equal, found, expected))
    check(late)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["fp16", "fp32i8", "bf16i4"])
def test_packed_files_are_copied_as_they_are(word, folder, tmp_path, caplog):
    packed = tmp_path / "packed.safetensors"
    pack(folder / "4.pth", packed, f"cpu {word}")
    caplog.clear()
    model, _ = streamed(packed, word, 2)
    assert not caplog.records, "nothing is converted"
    plain = RWKV.from_pretrained(packed, f"cpu {word}").engine.model.state_dict()
    streaming = model.engine.model.streaming
    assert {name.split(".")[1] for name in streaming.weights} == {"2", "3", "4"}
    for name, tensor in streaming.weights.items():
        assert torch.equal(tensor.view(torch.uint8), plain[name].view(torch.uint8)), name
        assert tensor.data_ptr() % 16 == 0
    planned = model.strategy.streamed_nbytes(model.config)
    padding = sum(2 * ALIGNMENT for _ in streaming.weights)
    assert planned <= streaming.nbytes < 2.5 * planned + padding  # tiles of such narrow matrices are padded a lot


def test_the_plan_counts_what_is_copied(tmp_path):
    """For widths that need no padding; int4's plan cannot know which matrices stay int8."""
    path = save_pth(oracle.random_weights(Shape(3, 64, 64, 128, 64)), tmp_path / "m.pth")
    for word in ("fp32", "fp16", "fp32i8"):
        model, _ = streamed(path, word, 1)
        weights = model.engine.model.streaming.weights.values()
        assert sum(tensor.nbytes for tensor in weights) == model.strategy.streamed_nbytes(model.config)


def test_nothing_reads_the_weights_from_the_buffers(folder):
    model, _ = streamed(folder / "4.pth", "fp32", 2)
    core = model.engine.model
    for attempt in (
        lambda: make_dense(core),
        lambda: move_model(core, lambda tensor: tensor.to(torch.bfloat16)),
        lambda: list(checkpoint_tensors(core)),
    ):
        with pytest.raises(
            StrategyError, match=re.escape("layers are streamed from main memory; load the model without +")
        ):
            attempt()
    with pytest.raises(StrategyError, match=r"streamed layers \(\+\) have no gradient; leave the \+ out"):
        load_model(Checkpoint.open(folder / "4.pth"), model.strategy, trainable=True)
    plain = RWKV.from_pretrained(folder / "4.pth", "cpu fp32")
    before = identity_of(core)
    model.forward([1, 2, 3])
    assert before == identity_of(core) == identity_of(plain.engine.model)


def test_a_streamed_segment_between_others(folder):
    """As `cpu fp32 *1 -> cuda bf16 *1+ -> cpu fp16 *2`: the layers 2 and 3 are streamed."""
    segments = [Segment("cpu", "fp32", count=1), Segment("cpu", "bf16", count=1), Segment("cpu", "fp16", count=2)]
    late, checkpoint = Late(), Checkpoint.open(folder / "4.pth")
    segments[1] = replace(segments[1], streams=True)
    model = load_model(checkpoint, Strategy.of(segments), streams_to=late.device())
    segments[1] = replace(segments[1], streams=False, count=3)
    plain = load_model(checkpoint, Strategy.of(segments))
    assert model.streaming.layers == {2, 3}
    late.watch(model.streaming)
    for length in (5, 1):
        tokens = torch.arange(2 * length).view(2, length)
        logits, state = Engine(model).forward(tokens)
        expected, other = Engine(plain).forward(tokens)
        assert torch.equal(logits, expected)
        assert_states_equal(state, other)
    check(late)


class Calls(TorchDispatchMode):
    """Collects the names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


def test_a_pass_allocates_nothing(folder):
    streaming = streamed(folder / "4.pth", "fp32", 1)[0].engine.model.streaming
    with Calls() as calls, streaming.forward_pass():
        for layer in range(SHAPE.n_layer):
            with streaming.layer(layer):
                pass
    assert calls.names == {"copy_", "slice"}


def test_if_nothing_is_left_to_stream(folder):
    """`*N+` for all layers but the head, which stays on the device."""
    model = load_model(Checkpoint.open(folder / "4.pth"), strategy("fp32", 5))
    assert model.streaming is None
