"""The model with transformers' interface: `from_pretrained`, `model(input_ids, labels=...)`, `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rwkv_engine.auto.config import GenerationSettings, MadeByName, RwkvConfig
from rwkv_engine.auto.generation import Generation
from rwkv_engine.auto.loading import DeviceMap, DType, check_options, strategy_for
from rwkv_engine.auto.outputs import BaseOutput, CausalLMOutput
from rwkv_engine.auto.padding import IGNORED, next_labels, texts_of, warn_of_padding
from rwkv_engine.auto.reading import (
    ALL,
    Reading,
    checked_labels,
    ids_of,
    kept_places,
    mean_loss,
    needs_gradient,
    refuse_gradient,
    refuse_inputs,
    state_of,
)
from rwkv_engine.auto.saving import Saving
from rwkv_engine.auto.training import TrainingInterface
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model
from rwkv_engine.pipeline import locate
from rwkv_engine.runtime import load_model
from rwkv_engine.storage.json_object import read_json

_OPTIONS = ("dtype", "device_map", "revision", "token", "local_files_only", "strategy", "load_in_8bit", "load_in_4bit")


class RwkvForCausalLM(Generation, Saving, TrainingInterface):
    """RWKV-4 with its head, used and trained like a model of transformers.

    Made by `AutoModelForCausalLM.from_pretrained`. It is an `nn.Module` whose parameters have the names of a checkpoint
    (`blocks.0.att.key.weight`); its state dict, written by `torch.save`, is a `.pth`.

    **Inference first, training on demand.** Weights are loaded packed for the kernels: `generate`, and calls under
    `torch.no_grad()` or `torch.inference_mode()`, are fast and have no gradients. `parameters()`, `state_dict()`,
    `train()`, and calls with gradients enabled (the default outside `torch.no_grad()`) convert them to plain matrices
    with the same numbers, for good; a notice says so. `generate` then uses the trained weights and is slower, until the
    model is saved and loaded again. After `requires_grad_(False)`, calls with gradients enabled leave the weights
    packed. Quantised weights cannot be trained. `model.device` and `model.dtype` do not convert anything.

    **Masked tokens are never read.** With an `attention_mask`, each row gets the logits, loss, hidden states and state
    that it would get alone and without padding, wherever its padding is. Logits and hidden states of padding are zeros.

    Vectors and activations are float32 in every precision, so hidden states are never rescaled.

    Attributes:
        config: a `RwkvConfig`.
        generation_config: the contents of generation_config.json, empty if there is none.
        name_or_path: where the model was loaded from.
    """

    def __init__(
        self,
        core: Model,
        config: RwkvConfig,
        generation_config: dict[str, Any] | None = None,
        name_or_path: str = "",
        is_mapped: bool = False,
    ):
        super().__init__(core, is_mapped)
        self.config = config
        self.generation_config = GenerationSettings(generation_config or {})
        self.name_or_path = name_or_path

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: DType = None,
        torch_dtype: DType = None,
        device_map: DeviceMap = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        strategy: str | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        **options: Any,
    ) -> Self:
        """Loads a model, in evaluation mode.

        Args:
            name_or_path: what `RWKV.from_pretrained` takes: "tales", a path in any format, a hub id.
            dtype, torch_dtype: of the matrices: a torch dtype or its name; "auto": that of the file; None: float32.
            device_map: None for the CPU; "cuda", "cuda:1", 1 or {"": 1}; "auto" fills the GPUs first, then the CPU.
            revision, token: of a hub id: branch, tag or commit; the access token of a private or gated repository.
            local_files_only: take a hub id from the hub cache without asking the server.
            strategy: where each layer runs, in place of dtype and device_map: "cuda fp16 *10 -> cpu fp32".
            load_in_8bit, load_in_4bit: store matrices in int8, or in int4.
            **options: transformers' options that have no effect here (`low_cpu_mem_usage`, `trust_remote_code`, ...).

        Raises:
            CheckpointError: there is no RWKV-4 model that can be read, or it cannot be downloaded.
            RequestError: an option is unknown or not supported.
            StrategyError: the device or the precision is not available.
        """
        check_options(options, _OPTIONS)
        path = locate(name_or_path, revision, token, local_files_only)
        checkpoint = Checkpoint.open(path)
        parsed = strategy_for(checkpoint, strategy, dtype, torch_dtype, device_map, load_in_8bit, load_in_4bit)
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode cannot be trained
            core = load_model(checkpoint, parsed)
        config = RwkvConfig.of(checkpoint.config, path)
        generation = read_json(path / "generation_config.json", missing_ok=True)
        return cls(core, config, generation, str(name_or_path), is_mapped=checkpoint.packing is not None)

    def forward(
        self,
        input_ids: Tensor | Sequence[Sequence[int]] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: State | Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        token_type_ids: Any = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Runs the model on tokens, continuing from `state`, which is not modified.

        Args:
            input_ids: integers (B, T), on any device. Masked ids may have any value.
            attention_mask: (B, T), 1 for a token and 0 for padding; None if there is no padding.
            inputs_embeds: not supported; pass `input_ids`.
            state: what an earlier call returned, or transformers' list of five tensors; None begins new texts.
            labels: (B, T) ids, -100 for positions that do not count; usually `input_ids`. They are shifted inside: each
                token predicts the label of the next unmasked one.
            use_cache: return the state; by default unless the model is in training mode.
            output_attentions: not supported; there are no attention weights.
            output_hidden_states: return L + 1 tensors (B, T, C): the residual stream before each layer but the first,
                that after the last layer, and the output of the last LayerNorm.
            return_dict: False returns a plain tuple.
            logits_to_keep: compute logits of this many last positions, or of the positions in an (N,) tensor; 0: all.
            num_items_in_batch: divide the summed loss by this instead of by the number of labels that count.
            token_type_ids: accepted, because some tokenizers return it, and ignored.

        Returns:
            A `CausalLMOutput`. With gradients enabled they flow into the weights and into the given state's tensors;
            `state.detach()` ends backpropagation through time.

        Raises:
            RequestError: ids, mask, labels or state have a wrong shape, dtype or value.
        """
        refuse_inputs(inputs_embeds, output_attentions)
        ids, mask = self._ids(input_ids, attention_mask, stacklevel=5)  # nn.Module.__call__ is two of the frames
        keep = kept_places(logits_to_keep, ids.shape[1])
        if labels is not None:
            if keep is not ALL:
                raise RequestError("logits_to_keep: the loss needs all logits; leave out logits_to_keep or labels")
            labels = next_labels(checked_labels(labels, ids, self.core.config.n_vocab, IGNORED), mask)
        before = state_of(state, self.core, len(ids))
        with self._reading(before) as reading:
            logits, hidden, after = reading.logits(ids, mask, before, keep, bool(output_hidden_states))
            loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        if self.is_quantized and torch.is_grad_enabled():
            logits, loss = refuse_gradient(logits), None if loss is None else refuse_gradient(loss)
        output = CausalLMOutput(loss, logits, self._returned(after, state, use_cache), hidden)
        return output.to_tuple() if return_dict is False else output

    def rwkv(
        self,
        input_ids: Tensor | Sequence[Sequence[int]] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: State | Sequence[Tensor] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseOutput | tuple[Any, ...]:
        """The model without its head: as `forward`, but returns `last_hidden_state` (B, T, C) instead of logits."""
        refuse_inputs(inputs_embeds, output_attentions)
        ids, mask = self._ids(input_ids, attention_mask, stacklevel=3)
        before = state_of(state, self.core, len(ids))
        with self._reading(before) as reading:
            features, after = reading.features(ids, mask, before, layers=bool(output_hidden_states))
        if self.is_quantized and torch.is_grad_enabled():
            features = refuse_gradient(features)
        layers = features.unbind(2) if output_hidden_states else None
        output = BaseOutput(layers[-1] if layers else features, self._returned(after, state, use_cache), layers)
        return output.to_tuple() if return_dict is False else output

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of weights; with `only_trainable` only of those that get gradients."""
        numbers = self.core.config
        embedding = numbers.n_vocab * numbers.n_embd
        if not only_trainable:
            return numbers.n_params - (embedding if exclude_embeddings else 0)
        if not self.is_trainable:  # packed weights get gradients once they are unpacked
            return 0 if self.is_frozen or self.is_quantized else self.num_parameters(False, exclude_embeddings)
        trained = {name: p.numel() for name, p in self.core.named_parameters() if p.requires_grad}
        return sum(trained.values()) - (trained.get("emb.weight", 0) if exclude_embeddings else 0)

    def _texts(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        """The rows without masked tokens: B tensors (T_i,), int64."""
        return texts_of(*ids_of(input_ids, attention_mask, self.core.config.n_vocab))

    def _ids(self, input_ids: Any, attention_mask: Any, stacklevel: int) -> tuple[Tensor, Tensor | None]:
        """Checked ids and mask; warns if padding is given without a mask."""
        ids, mask = ids_of(input_ids, attention_mask, self.core.config.n_vocab)
        if attention_mask is None and ids.shape[1] > 1:  # a single token is a step of somebody's own loop
            ends = self.config.eos_token_id
            markers = [self.config.bos_token_id, *(ends if isinstance(ends, list | tuple) else [ends])]
            warn_of_padding(ids, getattr(self.config, "pad_token_id", None), markers, stacklevel + 1)
        return ids, mask

    @contextmanager
    def _reading(self, state: State) -> Iterator[Reading]:
        """Yields what runs the model in a call, with gradients enabled if they are wanted."""
        wanted = torch.is_grad_enabled() and not self.is_quantized
        if self.is_frozen:  # but a state or an adapter may still be trained
            wanted = wanted and (needs_gradient(state) or any(p.requires_grad for p in self.core.parameters()))
        if wanted:
            self.make_trainable("called with gradients enabled (torch.no_grad() avoids this)")
        with torch.set_grad_enabled(wanted):
            yield Reading(self.core, self.engine, wanted)

    def _returned(self, after: State, given: Any, use_cache: bool | None) -> State | None:
        caches = self.config.use_cache and not self.training if use_cache is None else use_cache
        return after if caches or given is not None else None


class AutoModelForCausalLM(MadeByName):
    """Loads a model by `from_pretrained`, see `RwkvForCausalLM.from_pretrained`."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, **options: Any) -> RwkvForCausalLM:
        """Loads a model; takes and raises what `RwkvForCausalLM.from_pretrained` does."""
        return RwkvForCausalLM.from_pretrained(name_or_path, **options)
