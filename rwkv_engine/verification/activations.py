"""Statistics of the activations of every layer, collected by hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import Role
from rwkv_engine.models import Model
from rwkv_engine.verification.check import Check, judged

# The largest k that float16 can square: sqrt(65504).
LARGEST_K = 255.9


class Activations:
    """Statistics of each layer, the first layer first.

    Attributes:
        zeros: for each layer and token the share of exact zeros in the input of its sparse matrix, a squared ReLU.
        largest: by name (`residual`, and those of `Block.watched`) the largest absolute value of each layer; NaN if one
            is NaN.
    """

    def __init__(self, n_layer: int, names: Iterable[str] = ()):
        self.zeros: list[list[float]] = [[] for _ in range(n_layer)]
        self.largest = {name: [0.0] * n_layer for name in ("residual", *names)}

    def add_zeros(self, layer: int, squared: Tensor) -> None:
        """Adds the input of a sparse matrix, (B, T, F)."""
        self.zeros[layer] += (squared == 0).float().mean(-1).flatten().tolist()

    def add_extremes(self, name: str, layer: int, x: Tensor) -> None:
        """Adds the largest absolute value of a tensor of any shape."""
        before = torch.tensor(self.largest[name][layer], dtype=torch.float64)
        self.largest[name][layer] = torch.stack([before, x.abs().max().double().cpu()]).max().item()  # NaN if one is

    def checks(self) -> Iterator[Check]:
        """Checks for information, and one that fails if an activation is not finite."""
        if any(self.zeros):
            yield self._sparsity()
        yield self._finite()
        yield self._float16()

    def _sparsity(self) -> Check:
        shares = [torch.tensor(layer, dtype=torch.float32) for layer in self.zeros]
        layers = [{"min": s.min().item(), "mean": s.mean().item(), "max": s.max().item()} for s in shares]
        means = [layer["mean"] for layer in layers]
        what = f"{sum(means) / len(means):.1%} exact zeros, layers {min(means):.1%} to {max(means):.1%}"
        return Check("squared relu", "info", f"{what}, over {len(shares[0])} tokens", {"layers": layers})

    def _finite(self) -> Check:
        wrong = {n: i for n, largest in self.largest.items() for i, x in enumerate(largest) if not abs(x) < torch.inf}
        tops = {name: max(largest) for name, largest in self.largest.items()}
        what = ", ".join(f"{name} up to {x:.4g} (layer {self.largest[name].index(x)})" for name, x in tops.items())
        if wrong:
            what = f"not finite: {', '.join(f'{name} in layer {layer}' for name, layer in wrong.items())}"
        numbers = {
            name.replace(" ", "_"): [x if abs(x) < torch.inf else None for x in xs] for name, xs in self.largest.items()
        }
        return judged("activations", not wrong, what, **numbers)

    def _float16(self) -> Check:
        limits = {"residual": torch.finfo(torch.float16).max, "ffn k": LARGEST_K}
        over = {
            n: [i for i, x in enumerate(self.largest[n]) if not x <= limit]
            for n, limit in limits.items()
            if n in self.largest
        }
        found = "; ".join(f"{n} above {limits[n]:g} in layers {', '.join(map(str, o))}" for n, o in over.items() if o)
        what = f"plain float16 would overflow, {found}; this engine scales" if found else "nothing would overflow"
        return Check("float16", "info", what, {name.replace(" ", "_"): layers for name, layers in over.items()})


@contextmanager
def watched(model: Model) -> Iterator[Activations]:
    """Collects the activations of all tokens that the model reads inside the `with` block."""
    watched_modules = model.block.watched
    seen = Activations(model.config.n_layer, watched_modules)

    def before(layer: int, _: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.add_zeros(layer, inputs[0])

    def after(name: str, layer: int, _: nn.Module, inputs: Any, output: Any) -> None:
        seen.add_extremes(name, layer, output[0] if name == "residual" else output)

    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(partial(before, spec.layer))
        for name, spec in model.config.tensors().items()
        if spec.role is Role.SPARSE_MATRIX
    ]
    for i, block in enumerate(model.layers):
        handles += [
            *(block.get_submodule(m).register_forward_hook(partial(after, n, i)) for n, m in watched_modules.items()),
            block.register_forward_hook(partial(after, "residual", i)),
        ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
