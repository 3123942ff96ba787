"""`generate`, called the way transformers is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rwkv_engine.auto.lockstep import Lockstep
from rwkv_engine.auto.options import Options
from rwkv_engine.auto.outputs import Generated
from rwkv_engine.auto.padding import warn_of_padding
from rwkv_engine.auto.reading import state_of
from rwkv_engine.auto.rows import Rows
from rwkv_engine.auto.writing import Criterion, Processor, Scores, Stopping, Streamer
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import Sampler
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.runtime import Engine


class Model(Protocol):
    """What `Generation` needs of the class that it is mixed into."""

    @property
    def engine(self) -> Engine:
        """Runs the model."""

    @property
    def config(self) -> Any:
        """May have `bos_token_id`, `eos_token_id` and `pad_token_id`."""

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The contents of the model's generation_config.json, empty if it has none."""

    def _texts(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        """The rows (T_i,) without masked tokens."""


class Generation:
    """Gives a model with an engine the method `generate`."""

    def generate(
        self: Model,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        state: State | Sequence[Tensor] | None = None,
        generation_config: Any = None,
        streamer: Streamer | None = None,
        tokenizer: Any = None,
        logits_processor: Sequence[Processor] | None = None,
        stopping_criteria: Sequence[Criterion] | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Any:
        """Continues texts; returns the tensor that transformers returns for the same arguments.

        Each text is generated as if it were alone: neither padding nor the other rows change it. Options are taken
        from transformers' defaults, the model's generation_config.json, `generation_config`, and the arguments; later
        ones win.

        Args:
            input_ids: prompts, integers (B, T); None begins a text with `bos_token_id`.
            attention_mask: (B, T), 0 for padding, on either side. Without a mask, `pad_token_id` at the ends of a row
                counts as padding if it was given and does not end texts; if it also ends texts, rows that seem to be
                padded are read as they are, with a warning.
            inputs: another name of `input_ids`.
            state: of the B sequences that the prompts continue: a `State`, or transformers' list of five tensors.
            generation_config: a dictionary, or transformers' `GenerationConfig`.
            streamer: an object with `put` and `end`, such as `TextStreamer`.
            tokenizer: needed for `stop_strings`.
            logits_processor, stopping_criteria: as in transformers.
            seed: of the sampling; by default it is drawn from `generator`.
            generator: by default torch's global one, so that `torch.manual_seed` makes runs repeatable.
            **options: see `Options`.

        Returns:
            Token ids, int64 (B * num_return_sequences, T + generated), on the device of the prompts: each prompt as it
            was given, padding included, then the generated tokens, filled up with `pad_token_id`. With
            `return_dict_in_generate`, a `Generated`.

        Raises:
            RequestError: an argument is unknown, not supported, or out of range.
        """
        asked = Options.of(_own_settings(self), generation_config, options)
        engine = self.engine
        asked.check_vocabulary(engine.model.config.n_vocab)
        ids = _prompts(input_ids if inputs is None else inputs, asked)
        width = ids.shape[1]
        most = asked.most(width)
        texts = self._texts(ids, _mask(attention_mask, ids, asked))
        before = state_of(state, engine.model, len(texts))
        sampler = Sampler(asked.params(_seed(seed, generator) if asked.do_sample else 0))

        repeated = [i for i in range(len(texts)) for _ in range(asked.num_return_sequences or 1)]
        each = [texts[i] for i in repeated]
        processors, criteria = tuple(logits_processor or ()), tuple(stopping_criteria or ())
        stopping = Stopping(asked, each, tokenizer, criteria)
        if asked.padding is None and stopping.is_possible and len(each) > 1:
            raise RequestError("pad_token_id: got None, expected the token that fills up texts that end before others")
        config, home = engine.model.config, engine.model.device_map.home
        scores = Scores(asked, each, asked.least(width), processors, config.n_vocab, home)
        room = torch.full((len(each), most), asked.padding or 0, dtype=torch.int64)
        sequences = torch.cat([ids.cpu()[repeated], room], dim=1)
        kind = Lockstep if processors or criteria or len(each) > MOST_ROWS else Rows
        writing = kind(engine, sampler, scores, stopping, texts, before, repeated, sequences, width)
        lengths = writing.run(streamer)
        result = sequences[:, : width + max(lengths)].to(ids.device)
        return Generated(result, writing.state()) if asked.return_dict_in_generate else result


def _own_settings(model: Model) -> Mapping[str, Any]:
    """The model's generation_config.json, or without one the special tokens of its configuration."""
    if model.generation_config:
        return model.generation_config
    return {name: getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _prompts(ids: Any, asked: Options) -> Tensor:
    """The token ids, int64 (B, T)."""
    if ids is None:
        if asked.bos_token_id is None:
            raise RequestError("input_ids: got None, and there is no bos_token_id to begin a text with; pass a prompt")
        return torch.tensor([[asked.bos_token_id]], dtype=torch.int64)
    if not isinstance(ids, Tensor):
        hint = "; write generate(**inputs)" if isinstance(ids, Mapping) else ""
        raise RequestError(f"input_ids: got {type(ids).__name__}, expected a tensor (B, T) of ids{hint}")
    if ids.ndim != 2 or 0 in ids.shape or ids.is_floating_point() or ids.dtype == torch.bool:
        raise RequestError(
            f"input_ids: got {ids.dtype} {tuple(ids.shape)}, expected integers (B, T), at least one in each row"
        )
    return ids.long()


def _mask(mask: Any, ids: Tensor, asked: Options) -> Tensor | None:
    """The mask that was given, or else one that masks `pad_token_id` at the ends of rows."""
    if mask is None:
        if asked.pad_token_id is None or asked.pad_token_id in asked.ends:
            # As in transformers, a token that ends texts may be one on purpose, so it cannot be masked here.
            markers = asked.ends if asked.bos_token_id is None else [*asked.ends, asked.bos_token_id]
            warn_of_padding(ids, asked.padding, markers, stacklevel=3)
            return None
        is_text = (ids != asked.pad_token_id).int()
        return (is_text.cumsum(1) * is_text.flip(1).cumsum(1).flip(1) > 0).long()
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise RequestError(f"attention_mask: got {got}, expected a tensor {tuple(ids.shape)}, the shape of input_ids")
    return mask


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    """The seed that was given, else one that the generator draws."""
    if seed is not None:
        return seed
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device, dtype=torch.int64))
