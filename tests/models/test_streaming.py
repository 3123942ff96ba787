"""The order of copies and kernels: random orders that the events allow never spoil a buffer."""

from __future__ import annotations

import importlib.util
import random
from contextlib import contextmanager, suppress

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from queues import Hazard, Late, play

from rwkv_engine.models.queues import Queues, cuda_queues
from rwkv_engine.models.streaming import Streaming


def streamed(late: Late, layers: list[int], n_buffers: int) -> Streaming:
    hosts = {layer: torch.full((8 + i,), layer, dtype=torch.uint8) for i, layer in enumerate(layers)}
    buffers = [torch.zeros(8 + len(layers), dtype=torch.uint8) for _ in range(n_buffers)]
    streaming = Streaming(hosts, buffers, Queues(late.compute, late.copies))
    late.watch(streaming)
    return streaming


def passes(streaming: Streaming, n_layer: int, stops: list[int | None]) -> None:
    """Forward passes one after the other; an error ends some of them in a layer."""
    for stop in stops:
        with suppress(ZeroDivisionError), streaming.forward_pass():
            for layer in range(n_layer):
                with streaming.layer(layer):
                    if layer in streaming.layers:
                        assert set(streaming.buffer_of(layer)[:8].tolist()) == {layer}, "read before it was copied"
                    if layer == stop:
                        raise ZeroDivisionError


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_order_of_events_spoils_a_buffer(data):
    n_layer = data.draw(st.integers(1, 9), "layers")
    layers = data.draw(st.lists(st.integers(0, n_layer - 1), unique=True, min_size=1).map(sorted), "streamed")
    stops = data.draw(st.lists(st.none() | st.integers(0, n_layer - 1), min_size=1, max_size=4), "stops")
    late = Late(data.draw(st.integers(0, 99), "seed"))
    streaming = streamed(late, layers, data.draw(st.integers(1, 4), "buffers"))
    passes(streaming, n_layer, stops)
    for hurry in (0.0, 0.03, 0.5, 0.97, 1.0):
        play(late, random.Random(0), hurry)


class Deaf:
    """A queue that leaves out one of its waits."""

    def __init__(self, queue, leaves_out):
        self.queue, self.leaves_out, self.waits = queue, leaves_out, 0
        self.record, self.copy = queue.record, queue.copy

    def wait(self, event):
        self.waits += 1
        if self.waits != self.leaves_out:
            self.queue.wait(event)


def is_hazard(late: Late, hurry: float) -> bool:
    try:
        play(late, random.Random(0), hurry)
    except Hazard:
        return True
    return False


def test_no_copy_is_left_after_an_error():
    """Compute waits for all copies, so that the buffers can be freed."""
    late = Late()
    streaming = streamed(late, [0, 1, 2, 3], 2)
    for stop in (0, 2):
        passes(streaming, 4, [stop])
        last = late.compute.submitted[-1]
        assert last.kind == "wait"
        assert last.event == (late.copies, len(late.copies.submitted))


@pytest.mark.parametrize("n_buffers", [1, 2, 3])
@pytest.mark.parametrize("name", ["compute", "copies"])
def test_one_wait_less_is_found(name, n_buffers):
    """Six streamed layers of seven, two passes: every wait is needed, but for that of the copies when the buffers are
    empty, and that for all copies at the end of a pass, which no error has ended."""
    waits = range(1, 14) if name == "compute" else range(2, 2 * (1 + 6 - n_buffers) + 1)
    for which in [n for n in waits if name == "copies" or n != 7]:
        late = Late()
        streaming = streamed(late, [0, 1, 2, 4, 5, 6], n_buffers)
        queues = Queues(late.compute, late.copies)
        deaf = Deaf(getattr(queues, name), which)
        streaming._queues = queues._replace(**{name: deaf})
        with suppress(AssertionError):  # of what is read at once; the record is to tell it too
            passes(streaming, 7, [None, None])
        assert deaf.waits >= which
        assert any(is_hazard(late, hurry) for hurry in (0.0, 0.5, 1.0)), which


@pytest.fixture(scope="module")
def simulated():
    spec = importlib.util.spec_from_file_location("bench_streaming", ROOT / "bench" / "streaming.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.simulated


@given(layers=st.integers(1, 40), copy=st.floats(0, 9), compute=st.floats(0, 9), buffers=st.integers(1, 4))
def test_a_pass_takes_the_longer_of_copies_and_work(layers, copy, compute, buffers, simulated):
    """And one of the other: before the first layer there is nothing to copy beside."""
    expected = layers * max(copy, compute) + min(copy, compute) if buffers > 1 else layers * (copy + compute)
    assert simulated(layers, copy, compute, buffers) == pytest.approx(expected)


def test_copies_run_beside_the_layers_before():
    """Where copies take long, a copy begins as soon as its buffer is free; and all begin before the last layer runs."""
    late = Late()
    streaming = streamed(late, [0, 1, 2, 3], 2)
    order = []
    for name in ("compute", "copies"):
        queue = getattr(late, name)
        queue.submit = lambda work, submit=queue.submit, name=name: (order.append((name, work.kind)), submit(work))
    passes(streaming, 4, [None])
    kinds = [kind for _, kind in order if kind != "wait"]
    assert kinds == ["copy", "copy", "kernel", "copy", "kernel", "copy", "kernel", "kernel"]
    assert streaming.nbytes == 8 + 9 + 10 + 11


class Stream:
    """A CUDA stream as torch shows it."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def record_event(self):
        return f"event of {self.name}"

    def wait_event(self, event):
        self.calls.append(event)


def test_cuda_queues_are_the_current_stream_and_another(monkeypatch):
    device, now, entered = torch.device("cuda", 1), [Stream("one"), Stream("two")], []

    @contextmanager
    def stream(which):
        entered.append(which)
        yield

    made = Stream("copies")
    monkeypatch.setattr(torch.cuda, "Stream", lambda of: made if of == device else None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: now[0] if of == device else None)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    queues = cuda_queues(device)
    queues.copies.wait(queues.compute.record())
    assert made.calls == ["event of one"]
    now.pop(0)  # another stream is current, as while a graph is captured
    queues.compute.wait(queues.copies.record())
    assert now[0].calls == ["event of copies"]
    target = torch.zeros(3)
    queues.copies.copy(target, torch.ones(3))
    assert target.tolist() == [1, 1, 1]
    assert entered == [made]
