"""Decode over a pool, called or recorded, gives what `Engine.forward` gives, bit for bit."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import oracle
import oracle7
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from tape import tape

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.draw import Draw, of_rows
from rwkv_engine.models.turns import Turns
from rwkv_engine.runtime import Decoder, Engine
from rwkv_engine.runtime.engine import CHUNK, GPU_CHUNK, chunk_for
from rwkv_engine.runtime.graph import WARM_UPS, cuda_graph, eager

SHAPE = Shape(n_layer=3, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)
SHAPE_7 = oracle7.Shape(n_layer=3, n_head=2, head_size=20, n_ffn=72, n_vocab=101)
WEIGHTS = {4: oracle.random_weights(SHAPE), 7: oracle7.random_weights(SHAPE_7)}
CAPTURES = {"eager": eager, "tape": tape}


@pytest.fixture(params=[(4, "fp32"), (4, "bf16"), (4, "fp16"), (7, "fp32")], ids=lambda p: f"rwkv{p[0]} {p[1]}")
def engine(request, tmp_path) -> Engine:
    version, precision = request.param
    path = save_pth(WEIGHTS[version], tmp_path / "m.pth")
    return RWKV.from_pretrained(path, f"cpu {precision}").engine


def read(engine: Engine, batch: int, seed: int = 0):
    """Logits and state after a few random tokens of each of `batch` texts."""
    tokens = torch.randint(0, SHAPE.n_vocab, (batch, 7), generator=torch.Generator().manual_seed(seed))
    return engine.forward(tokens)


def assert_states_equal(one, other) -> None:
    for name in (*one.fields, "position"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("capture", CAPTURES)
def test_steps_equal_forward(engine, capture):
    """Batches of every size after one another, so that buckets are used again and rows fill some of them up."""
    decoder = Decoder(engine.model, capture=CAPTURES[capture])
    for batch in (1, 3, 16, 2, 5, 16, 3, 1):
        logits, state = read(engine, batch, batch)
        slots = decoder.pool.take(state)
        for _ in range(3):
            tokens = logits.argmax(-1)
            expected, state = engine.forward(tokens.unsqueeze(1), state)
            logits = decoder.step(tokens, slots)
            assert torch.equal(logits, expected)
        assert_states_equal(decoder.pool.read(slots), state)
        decoder.pool.free(slots)


@pytest.mark.parametrize("capture", CAPTURES)
def test_other_slots_stay_as_they_are(engine, capture):
    decoder = Decoder(engine.model, capture=CAPTURES[capture])
    _, state = read(engine, 5)
    slots = decoder.pool.take(state)
    decoder.step(torch.tensor([3, 4, 5]), [slots[4], slots[0], slots[2]])
    after = decoder.pool.read(slots)
    for name in (*state.fields, "position"):
        assert torch.equal(getattr(after, name)[[1, 3]], getattr(state, name)[[1, 3]])
        assert not torch.equal(getattr(after, name)[[0, 2, 4]], getattr(state, name)[[0, 2, 4]])


def test_a_bucket_keeps_nothing_from_its_last_step(engine):
    """Four rows, then three in the same buffers."""
    _, state = read(engine, 4)
    decoder, fresh = Decoder(engine.model), Decoder(engine.model)
    slots = decoder.pool.take(state)
    first = decoder.step(torch.tensor([1, 2, 3, 4]), slots)
    kept, before = first.clone(), decoder.pool.read(slots)
    decoder.step(torch.tensor([5, 6, 7]), slots[:3])
    assert torch.equal(first, kept), "logits are the caller's"
    after = decoder.pool.read(slots)
    for name in (*state.fields, "position"):
        assert torch.equal(getattr(after, name)[3], getattr(before, name)[3])

    draw, tokens = Draw(temperature=1.0), torch.tensor([1, 2, 3, 4])
    decoder.run(tokens, slots, 3, draw, torch.full((4,), 77), torch.arange(4))
    decoder.pool.load(slots, state)
    assert torch.equal(decoder.run(tokens, slots, 8, draw), fresh.run(tokens, fresh.pool.take(state), 8, draw))


def test_each_size_of_a_batch_takes_the_smallest_bucket(engine):
    recorded = []
    decoder = Decoder(engine.model, capture=lambda function: recorded.append(function) or function)
    slots = decoder.pool.take(engine.initial_state(16))
    for size in (1, 2, 3, 4, 7, 8, 9, 16):
        decoder.step(torch.zeros(size, dtype=torch.int64), slots[:size])
    assert len(recorded) == 5


DRAWS = {
    "greedy": SamplingParams(temperature=0),
    "plain": SamplingParams(seed=2**63 + 5),
    "all": SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("params", DRAWS.values(), ids=DRAWS)
def test_a_run_samples_the_same_tokens_as_a_sampler_step_by_step(engine, params, capture):
    sampler, samples = Sampler(params), [0, 2**64 - 1, 7]
    logits, state = read(engine, 3)
    first = torch.tensor(sampler.sample(logits, state.position, samples))
    decoder = Decoder(engine.model, capture=CAPTURES[capture])
    slots = decoder.pool.take(state)
    seeds, numbers = sampler.counters(samples, torch.device("cpu"))
    drawn = decoder.run(first, slots, 20, Draw.of(params), seeds, numbers)
    expected, tokens = [], first
    for _ in range(20):
        logits, state = engine.forward(tokens.unsqueeze(1), state)
        tokens = torch.tensor(sampler.sample(logits, state.position, samples))
        expected.append(tokens)
    assert drawn.tolist() == torch.stack(expected, dim=1).tolist()
    assert_states_equal(decoder.pool.read(slots), state)


def test_each_batch_size_is_captured_once_however_tokens_are_sampled(engine):
    recorded = []

    def counting(function):
        recorded.append(function)
        return function

    decoder = Decoder(engine.model, capture=counting)
    _, state = read(engine, 2)
    slots = decoder.pool.take(state)
    for i in range(10):
        decoder.run(torch.tensor([1, 2]), slots, 2, Draw.of(SamplingParams(temperature=0.1 * i)))
        decoder.step(torch.tensor([1, 2]), slots)
    assert len(recorded) == 1


@pytest.mark.slow
def test_threads_share_a_decoder(engine):
    """Each writes its own text, in turns of one token, and of runs of tokens."""
    decoder, draw = Decoder(engine.model), Draw(temperature=1.0)
    _, state = read(engine, 4)
    firsts = torch.tensor([1, 2, 3, 4])
    expected = Decoder(engine.model)
    drawn = expected.run(firsts, expected.pool.take(state), 60, draw, samples=torch.arange(4))
    slots = decoder.pool.take(state)

    def write(row: int) -> list[int]:
        sample, tokens, ids = torch.tensor([row]), firsts[row : row + 1], []
        while len(ids) < 60:
            if row % 2:
                tokens = decoder.run(tokens, [slots[row]], 3, draw, samples=sample)[0]
            else:
                logits = decoder.step(tokens, [slots[row]])
                position = decoder.pool.positions[[slots[row]]]
                tokens = draw(logits, position, torch.zeros(1, dtype=torch.int64), sample)
            ids += tokens.tolist()
            tokens = tokens[-1:]
        return ids

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(write, range(4))) == drawn.tolist()
    finally:
        sys.setswitchinterval(interval)


def test_threads_that_begin_together_get_one_decoder(engine, monkeypatch):
    made = []
    monkeypatch.setattr(
        f"{Engine.__module__}.Decoder", lambda model: time.sleep(0.05) or made.append(model) or object()
    )
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: engine.decoder, range(4)))
    assert len(made) == len(set(map(id, found))) == 1


def test_a_stream_waits_for_the_last_users_stream(monkeypatch):
    """The order of torch's calls, with CUDA replaced."""
    log, current = [], threading.local()

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append(f"{self.name} records")
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(f"{current.name} on {device}"))
    turns = Turns([torch.device("cpu"), torch.device("cuda", 0)])
    for name in ("one", "two"):
        current.name = name
        with turns.take():
            log.append(f"{name} works")
    assert log == [
        "one works",
        "one on cuda:0 records",
        "two on cuda:0 waits for event of one on cuda:0",
        "two works",
        "two on cuda:0 records",
    ]


def test_non_finite_logits_give_minus_one_and_do_not_affect_other_rows(engine):
    _, state = read(engine, 2)
    damaged = state.clone()
    damaged.att_shift[1, 0, 0] = torch.nan
    decoder, draw = Decoder(engine.model), Draw.of(SamplingParams(temperature=0))
    healthy = decoder.pool.take(state)
    expected = decoder.run(torch.tensor([1, 2]), healthy, 5, draw)
    decoder.pool.load(healthy, damaged)
    drawn = decoder.run(torch.tensor([1, 2]), healthy, 5, draw)
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1].tolist() == [-1] * 5


def test_tokens_of_one_sequence_follow_one_another_in_a_slot(engine):
    """Beside one token of another sequence; logits are computed where they are wanted."""
    decoder = Decoder(engine.model)
    if not decoder.chains:
        pytest.skip("needs compiled kernels")
    _, state = read(engine, 2)
    slots, tokens = decoder.pool.take(state), torch.arange(1, 21)
    own = [slots[1]] * 19
    got = decoder.step(tokens, [slots[0], *own], [slots[0], *own], [0, 3, 19])
    expected = [decoder.forward(tokens[:1], state.rows(slice(0, 1)))]
    after = state.rows(slice(1, 2))
    for token in tokens[1:].split(1):
        logits, after = decoder.forward(token, after)
        expected.append((logits, after))
    assert torch.equal(got, torch.cat([expected[i][0] for i in (0, 3, 19)]))
    for slot, (_, wanted) in zip(slots, (expected[0], expected[-1]), strict=True):
        assert_states_equal(decoder.pool.read([slot]), wanted)


@pytest.mark.parametrize(
    ("tokens", "slots", "message"),
    [
        ([1], [0, 1], r"got \(1,\) tokens for 2 slots, expected 1 to (16|32)"),
        ([], [], r"got \(0,\) tokens for 0 slots"),
        ([1] * 33, range(33), r"got \(33,\) tokens for 33 slots"),
        ([1, 2], [1, 1], r"slots: got \[1, 1\], expected different slots below 16"),
        ([1], [16], r"slots: got \[16\], expected different slots below 16"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(engine, tokens, slots, message):
    with pytest.raises(RequestError, match=message):
        Decoder(engine.model).step(torch.tensor(tokens, dtype=torch.int64), slots)


def test_an_engine_over_the_pool_equals_one_without(engine):
    """What an engine does where steps are recorded."""
    _, state = read(engine, 3)
    before = state.clone()
    expected, after = engine.forward(torch.tensor([[1], [2], [3]]), state, full_output=True)
    engine.pooled = True
    for _ in range(2):
        logits, got = engine.forward(torch.tensor([[1], [2], [3]]), state, full_output=True)
        assert torch.equal(logits, expected)
        assert_states_equal(got, after)
    assert_states_equal(state, before)
    with pytest.raises(RequestError, match="belongs to another model"):
        engine.forward(torch.tensor([[1]]), type(state)(**{**vars(state), "fingerprint": "other"}))


@pytest.mark.parametrize("full_output", [False, True])
def test_an_engine_over_the_pool_decodes_large_batches_in_groups(engine, full_output, monkeypatch):
    """A prefill would copy all matrices for one token of each text."""
    _, state = read(engine, 37)
    tokens = torch.arange(37).unsqueeze(1)
    groups = [slice(0, 16), slice(16, 32), slice(32, 37)]
    expected = [engine.forward(tokens[rows], state.rows(rows), full_output) for rows in groups]
    engine.pooled = True
    monkeypatch.setattr(engine.model, "read", None)
    logits, after = engine.forward(tokens, state, full_output)
    assert torch.equal(logits, torch.cat([part for part, _ in expected]))
    for rows, (_, part) in zip(groups, expected, strict=True):
        assert_states_equal(after.rows(rows), part)


def test_chunks_are_longer_on_gpus(engine):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert (chunk_for([cpu]), chunk_for([cpu, gpu, cpu])) == (CHUNK, GPU_CHUNK)
    assert (engine.chunk, Engine(engine.model, 7).chunk) == (CHUNK, 7)


def test_parameters_of_draws_are_kept_for_few_temperatures(engine):
    """A server sees thousands of them."""
    logits, state = read(engine, 2)
    zeros = torch.zeros(2, dtype=torch.int64)
    for i in range(1000):
        Draw(temperature=1 + i / 1000)(logits, state.position, zeros, zeros)
    assert of_rows.cache_info().currsize <= 64


@pytest.mark.parametrize("chunk", [2, 3, 8, 256])
def test_no_chunk_of_one_token_is_left_over(engine, chunk):
    engine.chunk = chunk
    for n in range(1, 530):
        sizes = engine._chunks(n)
        assert sum(sizes) == n
        assert 1 not in sizes or n == 1
        assert max(sizes) <= chunk + 1


def test_a_graph_is_warmed_up_on_a_side_stream_captured_once_and_replayed(monkeypatch):
    """The order of torch's calls, with CUDA replaced: what they do is for a GPU to show."""
    log = []

    def context(name):
        @contextmanager
        def entered(argument, **options):
            log.append(" ".join([name, str(argument), *map(str, options.values())]))
            yield
            log.append(f"end of {name}")

        return entered

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def __str__(self):
            return self.name

        def wait_stream(self, other):
            log.append(f"{self} waits for {other}")

    class Graph:
        def __str__(self):
            return "graph"

        def replay(self):
            log.append("replay")

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("current"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", context("stream"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", context("graph"))
    pools = iter(["pool", "another pool"])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    capture = cuda_graph(torch.device("cuda", 1))
    replay = capture(lambda: log.append("call"))
    replay()
    replay()
    warm = ["side waits for current", "stream side", *["call"] * WARM_UPS, "end of stream", "current waits for side"]
    recording = ["graph graph pool thread_local", "call", "end of graph"]
    assert log == [*warm, *recording, "replay", "replay"]
    log.clear()
    capture(lambda: log.append("call"))
    assert log == [*warm, *recording], "all recordings allocate from one pool"
