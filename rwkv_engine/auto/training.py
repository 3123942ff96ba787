"""The methods that transformers' `Trainer` and `pipeline`, and PEFT, call on a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rwkv_engine.auto.trainable import Trainable
from rwkv_engine.errors import RequestError


class TrainingInterface(Trainable):
    """Embeddings, gradient checkpointing and inputs for generation, under transformers' names."""

    main_input_name = "input_ids"
    is_gradient_checkpointing = False

    @classmethod
    def can_generate(cls) -> bool:
        """True: the model has `generate`."""
        return True

    def get_input_embeddings(self) -> nn.Module:
        """The embedding; its weight is (V, C)."""
        return self.emb

    def get_output_embeddings(self) -> nn.Module:
        """The head, a linear layer without bias; its weight is (V, C)."""
        return self.head

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding by one with a weight of the same shape, (V, C).

        Raises:
            RequestError: the weight has another shape.
            StrategyError: the weights are quantised.
        """
        self._set("emb", value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the head by a linear layer with a weight of the same shape, (V, C).

        Raises:
            RequestError: the weight has another shape.
            StrategyError: the weights are quantised.
        """
        self._set("head", new_embeddings)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Returns the embedding if the size is that of the vocabulary, or None; other sizes are refused.

        Raises:
            RequestError: another size.
        """
        n_vocab = self.core.config.n_vocab
        if new_num_tokens not in (None, n_vocab):
            raise RequestError(
                f"resize_token_embeddings: got {new_num_tokens}, but the vocabulary of {n_vocab} tokens cannot be"
                " resized; use one of its unused ids for a new token"
            )
        return self.get_input_embeddings()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, state: Any = None, use_cache: bool | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of the next call of the model: after the first one, only the last token and the state.

        Args:
            input_ids: the whole text so far, (B, T).
            state: what the last call returned.
            use_cache: passed on.
            **kwargs: `attention_mask` is passed on with the first call; the rest is ignored, as in transformers.
        """
        inputs = {
            "input_ids": input_ids if state is None else input_ids[:, -1:],
            "state": state,
            "use_cache": use_cache,
        }
        if state is None and kwargs.get("attention_mask") is not None:
            inputs["attention_mask"] = kwargs["attention_mask"]
        return inputs

    def enable_input_require_grads(self) -> None:
        """Does nothing: gradient checkpointing here needs no gradient of its inputs."""

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keeps only the inputs of layers for the backward pass, which runs these layers again: slower, less memory.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`; `use_reentrant` must be False.
            every_n_layers: do so for one layer in this many.
            offload: must be False.

        Raises:
            RequestError: an argument is not supported.
            StrategyError: the weights are quantised.
        """
        options = {"preserve_rng_state": False, **(gradient_checkpointing_kwargs or {})}  # nothing is random here
        if options.pop("use_reentrant", False):
            raise RequestError("gradient_checkpointing_enable: use_reentrant=True is not supported; leave it out")
        if offload:
            raise RequestError("gradient_checkpointing_enable: offload=True is not supported; leave it out")
        if not isinstance(every_n_layers, int) or every_n_layers < 1:
            raise RequestError(
                f"gradient_checkpointing_enable: got every_n_layers={every_n_layers!r}, expected an integer >= 1"
            )
        self.make_trainable("gradient_checkpointing_enable()")
        self.gradient_checkpointing_disable()
        for block in list(self.blocks)[::every_n_layers]:
            block.forward = partial(_recomputed, block, options)
        self.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keeps everything that the backward pass needs, as by default."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
        self.is_gradient_checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        """Another name of `is_gradient_checkpointing`."""
        return self.is_gradient_checkpointing

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Another name of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def activation_checkpointing_disable(self) -> None:
        """Another name of `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()

    def _set(self, name: str, module: nn.Module) -> None:
        expected = (self.core.config.n_vocab, self.core.config.n_embd)
        shape = tuple(getattr(getattr(module, "weight", None), "shape", ()))
        if shape != expected or getattr(module, "bias", None) is not None:
            raise RequestError(
                f"{name}: got {type(module).__name__} with a weight of shape {shape}, expected {expected} and no bias:"
                " the vocabulary cannot be resized"
            )
        self.make_trainable(f"{name} was replaced")
        setattr(self, name, module)


def _recomputed(block: nn.Module, options: dict[str, Any], *inputs: Any) -> Any:
    """Runs a layer; only its inputs are kept for the backward pass."""
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs)
    return checkpoint(forward, block, *inputs, use_reentrant=False, **options)
