"""Measures how much int4 weights in each matrix would change a model's predictions, on a text that it writes itself.

For a matrix W with inputs x and the gradients g of ln p(token) with respect to its outputs, an error D of the matrix
changes ln p by about g . D x. If the tokens are drawn from p, half the mean square of that is the Kullback-Leibler
divergence of the changed predictions, to second order (the Fisher information). One pass forward and backward gives x
and g of all matrices. In contrast to `Model.noise`, this sees that a layer is sensitive because of the layers after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import State, Strategy
from rwkv_engine.core.main_memory import free_main_memory
from rwkv_engine.models import MODELS, Model
from rwkv_engine.models.arrange import form_of
from rwkv_engine.models.int4 import quantized_int4
from rwkv_engine.models.weights import Dense
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.runtime import load_model
from rwkv_engine.runtime.mixed_formats import reader

# 16 texts of 64 tokens, each after the end-of-text token.
N_TEXTS, N_TOKENS, BEGINNING = 16, 64, 0
# Times the bytes of the model in float32: what the pass backward needs for activations, and its largest matrix again.
_ROOM = 1.5


def fits_in_memory(checkpoint: Checkpoint) -> bool:
    """Whether there is enough main memory for `measured_noise`, which needs the model in float32."""
    free = free_main_memory()
    return free is None or _ROOM * 4 * checkpoint.config.n_params < free


def measured_noise(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, float]:
    """The Kullback-Leibler divergence, in nats per token, that int4 in one matrix alone would cause, for each matrix.

    The result depends in its last digits on the processor and the number of threads.

    Args:
        checkpoint: the model.
        names: the matrices' original names.

    Raises:
        CheckpointError: the file is damaged.
        OutOfMemoryError: the model does not fit into memory in float32, see `fits_in_memory`.
    """
    model = load_model(checkpoint, Strategy.parse("cpu fp32"), trainable=True).requires_grad_(False)
    tokens = _written(model)
    model.emb.weight.requires_grad_(True)  # for gradients of all that follows it, but not of matrices
    watched = [_Watched(checkpoint, name, model.get_submodule(name.rpartition(".")[0])) for name in names]
    with torch.enable_grad():
        logits, _ = model(tokens[:, :-1], State.initial(checkpoint.config, N_TEXTS), full_output=True)
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    return {each.name: each.noise for each in watched}


@torch.no_grad()
def _written(model: Model) -> Tensor:
    """Texts at temperature 1, (N_TEXTS, N_TOKENS + 1) int64."""
    generator = torch.Generator().manual_seed(0)
    tokens, state = [torch.full((N_TEXTS, 1), BEGINNING, dtype=torch.int64)], State.initial(model.config, N_TEXTS)
    for _ in range(N_TOKENS):
        logits, state = model(tokens[-1], state)
        tokens.append(torch.multinomial(torch.softmax(logits, -1), 1, generator=generator))
    return torch.cat(tokens, dim=1)


class _Watched:
    """A matrix in the passes forward and backward; `noise` is measured in the latter."""

    def __init__(self, checkpoint: Checkpoint, name: str, module: nn.Module):
        self.checkpoint, self.name, self.noise = checkpoint, name, 0.0
        module.register_forward_hook(self._forward)

    def _forward(self, module: Dense, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0].detach().flatten(0, 1)
        output.register_hook(lambda gradient: self._backward(module.weight, x, gradient.flatten(0, 1)))

    @torch.no_grad()
    def _backward(self, weight: Tensor, x: Tensor, gradient: Tensor) -> None:
        form, (outputs, inputs) = form_of(self.checkpoint.specs[self.name].role), weight.shape
        moments = MODELS[type(self.checkpoint.config)].input_moments(self.name, reader(self.checkpoint))
        values, columns = quantized_int4(weight, form, moments)
        if form == "tiles":
            rounded = tiles_in_floats(values, outputs, inputs, columns)
        else:
            rounded = rows_in_floats(values, outputs, columns)
        change = (gradient * F.linear(x, rounded - weight)).sum(-1)
        self.noise = 0.5 * change.double().square().mean().item()
