"""The model as transformers has it: `from_pretrained`, `model(input_ids, labels=...)`, `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rwkv_engine.auto.config import RwkvConfig
from rwkv_engine.auto.forms import TwoForms
from rwkv_engine.auto.generation import Generation
from rwkv_engine.auto.loading import DeviceMap, DType, check_options, strategy_for
from rwkv_engine.auto.outputs import BaseOutput, CausalLMOutput
from rwkv_engine.auto.padding import IGNORED, next_labels, texts_of
from rwkv_engine.auto.reading import (
    ALL,
    Reading,
    checked_labels,
    ids_of,
    kept_places,
    mean_loss,
    refuse_gradient,
    refuse_inputs,
    state_of,
)
from rwkv_engine.auto.saving import Saving
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model
from rwkv_engine.pipeline import locate
from rwkv_engine.runtime import load_model
from rwkv_engine.storage.json_object import read_json

_OPTIONS = ("dtype", "device_map", "revision", "token", "local_files_only", "strategy", "load_in_8bit", "torch_dtype")


class RwkvForCausalLM(Generation, Saving, TwoForms):
    """RWKV-4 with its head, used and trained like a model of transformers.

    `AutoModelForCausalLM.from_pretrained` makes it. It is an `nn.Module` whose parameters have the names of a
    checkpoint (`blocks.0.att.key.weight`); its state dict, saved by `torch.save`, is a `.pth`.

    **Two forms, one truth.** Weights are loaded as kernels read them: `generate`, and calls under `torch.no_grad()` or
    `torch.inference_mode()`, are fast, and there are no gradients. They become plain trainable matrices, with the same
    numbers and for good, when someone asks for `parameters()`, `state_dict()` or `train()`, or calls the model with
    gradients on, as they are outside `torch.no_grad()`; a line on standard error says so. From then on `generate` uses
    what is trained, and is slower; saving and loading the model makes it fast again. After
    `requires_grad_(False)`, calls with gradients on leave them packed. int8 weights are refused where they would be
    trained.
    `model.device` and `model.dtype` tell where it is without asking for a parameter.

    **Masked tokens are not there.** With an `attention_mask`, each row is read as if it were alone and without them,
    wherever the padding is: its logits, loss, hidden states and state are those of the row without padding. In the
    places of padding, logits and hidden states are zeros.

    Vectors and activations are float32 in every precision, so hidden states are never rescaled.

    Attributes:
        config: a `RwkvConfig`.
        generation_config: what a generation_config.json says, else empty.
        name_or_path: what it was loaded from.
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
        self.generation_config = generation_config or {}
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
        **options: Any,
    ) -> Self:
        """Loads a model, in evaluation mode.

        Args:
            name_or_path: what `RWKV.from_pretrained` takes: "tales", a path in any format, a hub id.
            dtype: of the matrices: a torch dtype or its name; "auto": as in the file; None: float32.
            torch_dtype: an older name of it.
            device_map: None for the CPU; "cuda", "cuda:1", 1 or {"": 1}; "auto" for the GPUs as far as they go.
            revision: of a hub id: branch, tag or commit.
            token: for a private or gated repository.
            local_files_only: take a hub id from the hub cache and ask no server.
            strategy: in place of dtype and device_map, where each layer runs: "cuda fp16 *10 -> cpu fp32".
            load_in_8bit: int8 matrices.
            **options: what means nothing here (`low_cpu_mem_usage`, `trust_remote_code`, ...) is taken.

        Raises:
            CheckpointError: no RWKV-4 model can be read there, or none downloaded.
            RequestError: an unknown option, or one that cannot be honoured.
            StrategyError: no such device or precision here.
        """
        check_options(options, _OPTIONS)
        path = locate(name_or_path, revision, token, local_files_only)
        checkpoint = Checkpoint.open(path)
        parsed = strategy_for(checkpoint, strategy, dtype, torch_dtype, device_map, load_in_8bit)
        with torch.inference_mode(False), torch.no_grad():  # inference mode's tensors could never be trained
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
        """Reads tokens, continuing from `state`, which is not modified.

        Args:
            input_ids: (B, T) integers, on any device. What is masked need be no id.
            attention_mask: (B, T), 1 for a token and 0 for what is none; None: all are tokens.
            inputs_embeds: refused: a model begins with ids.
            state: what a call before returned, or transformers' list of five tensors; None begins new texts.
            labels: (B, T) ids, -100 for what does not count; usually `input_ids`. Each token is to predict the label of
                the next one that is there.
            use_cache: return the state; by default unless training.
            output_attentions: refused: there are none.
            output_hidden_states: return L + 1 of them, (B, T, C) each: the residual stream after each layer, and after
                the last LayerNorm.
            return_dict: False for a plain tuple.
            logits_to_keep: of the last so many places, or of those of a (N,) tensor; 0: of all.
            num_items_in_batch: divide the summed loss by it, in place of the number of labels that count.
            token_type_ids: what some tokenizers return; means nothing here.

        Returns:
            See `CausalLMOutput`. With gradients on, they flow into weights, and into the state's tensors; a state
            cut off by `state.detach()` ends backpropagation through time there.

        Raises:
            RequestError: no such ids, mask, labels or state.
        """
        refuse_inputs(inputs_embeds, output_attentions)
        n_vocab = self.core.config.n_vocab
        ids, mask = ids_of(input_ids, attention_mask, n_vocab)
        keep = kept_places(logits_to_keep, ids.shape[1])
        if labels is not None:
            if keep is not ALL:
                raise RequestError("logits_to_keep: the loss needs all logits; leave it out, or the labels")
            labels = next_labels(checked_labels(labels, ids, n_vocab, IGNORED), mask)
        before = state_of(state, self.core, len(ids))
        with self._reading(before) as reading:
            logits, hidden, after = reading.logits(ids, mask, before, keep, bool(output_hidden_states))
            loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        if self.is_quantized and torch.is_grad_enabled():
            logits, loss = refuse_gradient(logits), None if loss is None else refuse_gradient(loss)
        output = CausalLMOutput.of(
            loss=loss, logits=logits, state=self._returned(after, state, use_cache), hidden_states=hidden
        )
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
        """The model without its head: arguments as for `forward`, `last_hidden_state` (B, T, C) in place of logits."""
        refuse_inputs(inputs_embeds, output_attentions)
        ids, mask = ids_of(input_ids, attention_mask, self.core.config.n_vocab)
        before = state_of(state, self.core, len(ids))
        with self._reading(before) as reading:
            features, after = reading.features(ids, mask, before, layers=bool(output_hidden_states))
        if self.is_quantized and torch.is_grad_enabled():
            features = refuse_gradient(features)
        layers = features.unbind(2) if output_hidden_states else None
        output = BaseOutput.of(
            last_hidden_state=layers[-1] if layers else features,
            state=self._returned(after, state, use_cache),
            hidden_states=layers,
        )
        return output.to_tuple() if return_dict is False else output

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are."""
        if only_trainable and (self.is_frozen or self.is_quantized):
            return 0
        numbers = self.core.config
        return numbers.n_params - (numbers.n_vocab * numbers.n_embd if exclude_embeddings else 0)

    def _texts(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        """The rows without what is masked: B times (T_i,) int64."""
        return texts_of(*ids_of(input_ids, attention_mask, self.core.config.n_vocab))

    @contextmanager
    def _reading(self, state: State) -> Iterator[Reading]:
        """What a call reads with, in the mode it reads in."""
        wanted = torch.is_grad_enabled() and not self.is_quantized
        if self.is_frozen:
            wanted = wanted and any(field.requires_grad for field in state.fields.values())
        if wanted:
            self.make_trainable("called with gradients on (torch.no_grad() would avoid this)")
        with torch.set_grad_enabled(wanted):
            yield Reading(self.core, self.engine, wanted)

    def _returned(self, after: State, given: Any, use_cache: bool | None) -> State | None:
        caches = self.config.use_cache and not self.training if use_cache is None else use_cache
        return after if caches or given is not None else None


class AutoModelForCausalLM:
    """Loads a model by `from_pretrained`, see `RwkvForCausalLM.from_pretrained`."""

    def __init__(self) -> None:
        raise RequestError("AutoModelForCausalLM is made by AutoModelForCausalLM.from_pretrained(NAME)")

    @staticmethod
    def from_pretrained(name_or_path: str | Path, **options: Any) -> RwkvForCausalLM:
        """Loads a model; takes and raises what `RwkvForCausalLM.from_pretrained` does."""
        return RwkvForCausalLM.from_pretrained(name_or_path, **options)
