"""Counts the kernels that a GPU would launch, by the calls that reach torch's dispatcher on the CPU."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from rwkv_engine.core.state import State
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.models import Model
from rwkv_engine.native import build
from rwkv_engine.runtime import Decoder, decoder
from rwkv_engine.runtime.bucket import RowSampling

# The modules, whose names the package gives to their functions.
linear_many = sys.modules["rwkv_engine.ops.linear_many"]
# Operators whose functions look at the device: without their kernel, the function `<name>_reference` serves them.
CHOOSING = {name: sys.modules[f"rwkv_engine.ops.{name}"] for name in ("embed_norm", "norm_linear")}

# What launches nothing: views and allocations.
NOTHING = re.compile(
    r"(view|_unsafe_view|_reshape_alias|select|slice|t|transpose|permute|unsqueeze|squeeze|expand|unbind|split\w*|alias"
    r"|as_strided|detach|lift_fresh|empty\w*|new_empty\w*)$"
)
# Kernels of one call of our operators, where it is not one; wkv4 with more than its chunk of tokens.
OURS = {"time_mixing4_step": 2, "channel_mixing4_step": 2, "draw_tokens": 2, "wkv4": 3, "wkv7_backward": 3}
LAYERS = {"time_mixing4_step", "channel_mixing4_step", "blocks7_step"}


def registered() -> set[str]:
    """Our operators that have a CUDA kernel; of the others the reference runs on a GPU."""
    bindings = build.source_root().glob("bindings/*_cuda.h")
    return {name for path in bindings for name in re.findall(r'm\.impl\("(\w+)"', path.read_text(encoding="utf-8"))}


class Launches(TorchDispatchMode):
    """Counts kernels by the operators that launch them, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._registered = registered()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if func.namespace == "rwkv_engine" and name not in self._registered:
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
        with self:  # what torch composes of other operators, such as a reshape that may or may not copy
            composed = func.decompose(*args, **(kwargs or {}))
        if composed is not NotImplemented:
            return composed
        if not NOTHING.match(name):
            self.counts[name] += OURS.get(name, 1)
        if func is torch.ops.aten.mm.dtype:  # which the CPU does not have
            return args[0].new_empty(len(args[0]), args[1].shape[1], dtype=args[2])
        return func(*args, **(kwargs or {}))


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Makes functions that look at the device do what they do on a GPU."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(linear_many, "_has_mixed_products", lambda x: True))
        for name, module in CHOOSING.items():
            patches.enter_context(patch.object(module, f"{name}_reference", getattr(torch.ops.rwkv_engine, name)))
        yield


def counted(function: Callable[[], object]) -> Counter[str]:
    """The kernels that a call launches, by operator."""
    with torch.no_grad(), _as_on_gpu(), Launches() as launches:
        function()
    return launches.counts


def beside_the_layers(model: Model, draw: Draw) -> Counter[str]:
    """The kernels and copies in the captured graph of one more token, without those of the layers."""
    over_pool = Decoder(model, capture=lambda function: function)
    slots = over_pool.pool.take(State.initial(model.config).to(model.device_map.home))
    rows = [RowSampling(0, 0, draw.top_k, draw.temperature, draw.top_p, draw.min_p)]
    over_pool.sample([0], slots, rows)  # which captures the graph
    count = counted(lambda: over_pool.sample([0], slots, rows))
    return Counter({name: n for name, n in count.items() if name not in LAYERS})


def around_a_replay(model: Model, params: SamplingParams) -> Counter[str]:
    """The kernels and copies that one more token of a generated text takes beside the captured graph."""

    def uncounted(function: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            with _disable_current_modes():
                function()

        return replay

    def write(n: int) -> Counter[str]:
        request = Request([1], Sampler(params), n)  # of one token, which is not a prefill
        scheduler = Scheduler(model)
        scheduler.add(request)
        count = counted(lambda: scheduler.wait(lambda: request.finish_reason))
        assert len(request.tokens) == n
        return count

    kept, decoder._capture_for = decoder._capture_for, lambda model: uncounted
    try:
        write(2)  # layers keep what they make of parameters
        few, more = write(2), write(3)
    finally:
        decoder._capture_for = kept
    return more - few


def of_a_chunk(model: Model, tokens: int, layers: int) -> int:
    """The kernels of one chunk of a prompt of one text, if the model had so many layers."""
    state = State.initial(model.config).to(model.device_map.home)

    def read(n: int) -> int:
        counted(lambda: model(torch.zeros(1, 2, dtype=torch.int64), state))  # layers keep what they make of parameters
        return sum(counted(lambda: model(torch.zeros(1, n, dtype=torch.int64), state)).values())

    kept = model.blocks
    try:
        whole = read(tokens)
        model.blocks = kept[:-1]
        model.forget()
        state = State.initial(replace(model.config, n_layer=len(kept) - 1))
        of_a_layer = whole - read(tokens)
    finally:
        model.blocks = kept
        model.forget()
    return whole + (layers - len(kept)) * of_a_layer
