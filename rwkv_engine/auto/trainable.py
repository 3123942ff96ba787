"""A model whose weights are packed for the kernels until plain matrices with gradients are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from rwkv_engine.core.config import Role
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.errors import CheckpointError, StrategyError
from rwkv_engine.models import Model
from rwkv_engine.models.dense import is_quantized, make_dense
from rwkv_engine.notices import log
from rwkv_engine.runtime import Engine
from rwkv_engine.runtime.moving import move_model, stays


class Trainable(nn.Module):
    """The modules of a `Model` as its own, so that parameters have the names of a checkpoint.

    There is one set of weights. It is packed at first, which is fast but has no gradients. Asking for parameters, for
    the state dict, for training, or for an output with gradients converts it to plain matrices with the same numbers,
    one after the other. That is permanent, because an optimiser holds on to its parameters; `generate` then uses the
    very weights that are trained.

    Attributes:
        core: the model itself. It is not registered as a submodule, or every parameter would have two names.
        is_trainable: whether the weights are plain matrices already.
        is_frozen: whether `requires_grad_(False)` was called.
        is_quantized: whether matrices are quantised, which cannot be trained.
    """

    core: Model

    def __init__(self, core: Model, is_mapped: bool = False):
        """`is_mapped`: parts of the weights lie in a memory-mapped file, and must not be written to."""
        super().__init__()
        object.__setattr__(self, "core", core)
        self.emb, self.blocks, self.ln_out, self.head = core.emb, core.blocks, core.ln_out, core.head
        self._is_mapped = is_mapped
        self.is_quantized = is_quantized(core)
        self.is_trainable = self.is_frozen = False
        self.training = False

    @property
    def device(self) -> torch.device:
        """The device of the first layer. Ids and states may be on any device; logits are on the device of the head."""
        return self.core.device_map.devices[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding, and of all matrices unless precisions are mixed. Vectors are always float32."""
        return self.core.emb.weight.dtype

    @cached_property
    def engine(self) -> Engine:
        """Runs the model on token ids with its present weights, without gradients."""
        return Engine(self.core)

    def make_trainable(self, reason: str) -> None:
        """Converts the weights to plain matrices, for good. `reason` is part of the notice that generation gets slower.

        Raises:
            StrategyError: the weights are quantised.
        """
        if self.is_trainable:
            return
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode cannot be trained
            make_dense(self.core, copies=self._is_mapped)
            self.core.requires_grad_(not self.is_frozen)
        self.is_trainable = True
        self._renew()
        log.warning(
            f"{reason}: the weights were unpacked for training, so generation is slower from now on; save the model and"
            " load it again to make it fast again"
        )

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; training mode converts the weights to plain matrices.

        Raises:
            StrategyError: the weights are quantised, and `mode` is True.
        """
        if mode:
            self.make_trainable("train()")
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As `nn.Module.requires_grad_`. After False, calls with gradients enabled leave packed weights packed.

        Raises:
            StrategyError: the weights are quantised, and `requires_grad` is True.
        """
        self.is_frozen = not requires_grad
        if requires_grad:
            self.make_trainable("requires_grad_()")
        self.core.requires_grad_(requires_grad)
        return self

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """What `parameters`, `named_parameters` and optimizers go through, also those of a module around this one."""
        if not self.is_quantized:  # those have parameters to look at, and none to train
            self.make_trainable("parameters()")
        yield from super().named_modules(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The tensors of a checkpoint by their original names; `torch.save` makes a `.pth` of it that can be loaded.

        Raises:
            StrategyError: the weights are quantised.
        """
        self.make_trainable("state_dict()")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Accepts original and Hugging Face names, and vectors of any shape. Earlier states do not fit the new weights.

        Raises:
            CheckpointError: tensors are missing, unknown, or have another shape.
            StrategyError: the weights are quantised.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            raise CheckpointError(f"state dict: {' '.join(lines)[:500]}; is it another model's?") from error

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.make_trainable("load_state_dict()")
        specs = self.core.config.tensors()
        for key in [key for key in state_dict if key.startswith(prefix)]:
            tensor = state_dict.pop(key)
            name = self.core.config.to_original(key.removeprefix(prefix))
            spec = specs.get(name)
            if spec and spec.role is Role.VECTOR and isinstance(tensor, Tensor):
                fits = tensor.numel() == math.prod(spec.shape)
                tensor = tensor.reshape(spec.shape) if fits else tensor
            state_dict[prefix + name] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the model to another device, another floating dtype, or both; vectors stay float32.

        Raises:
            CheckpointError: a weight is too large for float16.
            StrategyError: the device does not exist, or the model cannot run there or in that dtype.
        """
        try:
            torch._C._nn._parse_to(*args, **kwargs)  # a number is a device of the accelerator, if there is one
        except RuntimeError as error:
            raise self._unreachable(error) from error
        return super().to(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by `to`, `cuda`, `half` and the like, also by those of an enclosing module."""
        self._check_target(fn)
        if self.is_trainable or stays(self.core, fn):
            vectors = self._vectors()
            super()._apply(lambda tensor: _moved(tensor, fn, vectors), recurse)  # type: ignore[no-untyped-call]
            self.core.forget()
        else:
            with torch.inference_mode(False), torch.no_grad():
                move_model(self.core, fn)
        self._renew()
        return self

    def _vectors(self) -> set[int]:
        """The `id`s of all vectors and their gradients."""
        specs = self.core.config.tensors().items()
        vectors = [self.core.get_parameter(name) for name, spec in specs if spec.role is Role.VECTOR]
        return {id(t) for vector in vectors for t in (vector, vector.grad) if t is not None}

    def _check_target(self, fn: Callable[[Tensor], Tensor]) -> None:
        try:
            target = fn(torch.empty(1, dtype=self.dtype, device=self.device))
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise self._unreachable(error) from error
        if target.device.type not in ("cpu", "cuda"):
            raise StrategyError(f"the model cannot be moved to the device {target.device}: it runs on cpu and cuda")
        if target.dtype not in DTYPES.values():
            raise StrategyError(f"the model cannot run in {target.dtype}: expected float32, float16 or bfloat16")
        if self.is_quantized and target.dtype != self.dtype:
            raise StrategyError(
                f"quantised weights cannot be converted to {target.dtype}; load the model again in that dtype"
            )

    def _unreachable(self, error: Exception) -> StrategyError:
        reason = str(error).splitlines()[0].rstrip(". ")
        return StrategyError(
            f"the model cannot be moved: {reason}; it stays on {self.device}; `rwkv-engine info` lists the devices"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Modules that are replaced here, as PEFT does, are replaced in the model too."""
        super().__setattr__(name, value)
        if name in ("emb", "ln_out", "head"):
            setattr(self.core, name, value)

    def _renew(self) -> None:
        """Is called after weights were replaced or moved."""
        self.emb, self.head = self.core.emb, self.core.head
        self.__dict__.pop("engine", None)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the engine, with its locks and CUDA graphs."""
        return {name: value for name, value in self.__dict__.items() if name != "engine"}


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor], vectors: set[int]) -> Tensor:
    """The parameter or gradient moved by `fn`; vectors, given by their `id`, keep their dtype."""
    moved = fn(tensor)
    return tensor.to(moved.device) if id(tensor) in vectors and moved.dtype != tensor.dtype else moved
