"""Chooses the matrices that int8 holds although the strategy says int4, because they suffer most.

The error that int4 causes in each matrix is measured on a sample of its rows, and translated to noise in the logits
(`Model.noise`); `convert.measured_noise` measures the noise itself, which needs the model in float32. Those matrices
whose noise is largest for the bytes that int8 would add become int8, as many as a budget of bytes allows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core.weight_format import FORMATS, I4, I8
from rwkv_engine.models import MODELS
from rwkv_engine.models.int4 import int4_columns
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.runtime.finite import check_finite
from rwkv_engine.runtime.plan import TensorPlan

# What int8 may add to the bytes of all int4 matrices: 4.5 bits a weight become up to 5.9.
BUDGET = 0.3
# Returns the noise that int4 causes in each of these matrices.
Measure = Callable[[Sequence[str]], dict[str, float]]


@dataclass(frozen=True)
class Mixture:
    """The matrices for which a strategy says int4, and those of them that are int8.

    Attributes:
        kept: the names of the matrices that are int8, in the order of the checkpoint.
        n_matrices: the number of matrices that the strategy wants in int4.
        int4_bytes: what all of them would take in int4.
        added: what int8 adds to that.
        budget: the most that it may add.
    """

    kept: tuple[str, ...]
    n_matrices: int
    int4_bytes: int
    added: int
    budget: int

    def __str__(self) -> str:
        words = f"{len(self.kept)} of {self.n_matrices} int4 matrices stay int8"
        added, budget, all_int4 = (f"{size / 1e6:,.1f}" for size in (self.added, self.budget, self.int4_bytes))
        kinds = Counter(re.sub(r"^blocks\.\d+\.|\.weight$", "", name) for name in self.kept)
        which = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"
        return f"{words}, which adds {added} MB (at most {budget}) to {all_int4} MB: {which}"


def mixed(
    checkpoint: Checkpoint,
    plans: Mapping[str, TensorPlan],
    budget: float = BUDGET,
    measure: Measure | None = None,
) -> tuple[dict[str, TensorPlan], Mixture | None]:
    """The plans with the formats that the matrices of a strategy with int4 really get.

    Quantised matrices of a packed file with int4 keep their formats; nothing is measured then.

    Args:
        checkpoint: the checkpoint to load or to pack.
        plans: the plan of each tensor, see `plan_tensors`.
        budget: what int8 may add, as a share of the bytes of all int4 matrices.
        measure: returns the noise that int4 causes in each of these matrices; by default it follows from the weights.

    Returns:
        The new plans, and what was chosen; None if the strategy has no int4, or the file has chosen already.

    Raises:
        CheckpointError: the file is damaged, or a matrix contains NaN, infinity or numbers too large for float32.
    """
    wanted = [name for name, plan in plans.items() if plan.weights == I4]
    packing = checkpoint.packing
    if not wanted:
        return dict(plans), None
    if packing and packing.quantised == I4.name:
        stored = {name: FORMATS[packing.matrices[name].dtype] for name in wanted}
        return _with_int8(plans, [name for name in wanted if stored[name] == I8]), None
    added = {name: I8.nbytes(plans[name].spec.shape) - I4.nbytes(plans[name].spec.shape) for name in wanted}
    int4_bytes = sum(I4.nbytes(plans[name].spec.shape) for name in wanted)
    noise = measure(wanted) if measure else {name: _noise(checkpoint, name, plans[name].form) for name in wanted}
    room, kept = int(budget * int4_bytes), set()
    for name in sorted(wanted, key=lambda name: noise[name] / added[name], reverse=True):
        if added[name] <= room:
            room -= added[name]
            kept.add(name)
    ordered = tuple(name for name in wanted if name in kept)
    spent = sum(added[name] for name in kept)
    return _with_int8(plans, ordered), Mixture(ordered, len(wanted), int4_bytes, spent, int(budget * int4_bytes))


def reader(checkpoint: Checkpoint) -> Callable[[str], Tensor]:
    """A function that reads a tensor in floats, and whether it was stored so, see `Model.input_moments`."""
    return lambda name: in_floats(checkpoint.read(name), checkpoint.read_scales(name))


def _with_int8(plans: Mapping[str, TensorPlan], names: list[str] | tuple[str, ...]) -> dict[str, TensorPlan]:
    return {name: replace(plan, weights=I8) if name in names else plan for name, plan in plans.items()}


def _noise(checkpoint: Checkpoint, name: str, form: str) -> float:
    model, read = MODELS[type(checkpoint.config)], reader(checkpoint)
    weight = read(name)
    check_finite(f"{checkpoint.path}: {name}", weight, torch.float32)
    _, error = int4_columns(weight, form, model.input_moments(name, read))
    checkpoint.release(weight)
    return model.noise(checkpoint.config, name, error)
