"""`generate`, as programs for transformers call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rwkv_engine.auto.options import Options
from rwkv_engine.auto.reading import state_of
from rwkv_engine.auto.scores import Processor, Scores
from rwkv_engine.auto.stopping import Criterion, Stopping
from rwkv_engine.auto.writing import Streamer, Writing
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import Sampler
from rwkv_engine.runtime import Engine
from rwkv_engine.runtime.ragged import read_ragged


class Generated(NamedTuple):
    """What `return_dict_in_generate` asks for.

    Attributes:
        sequences: ids (R, T), as `generate` returns them by default.
        state: of R texts, each after its last token that is not padding; `generate(..., state=state)` goes on from it.
    """

    sequences: Tensor
    state: State


class Model(Protocol):
    """What `Generation` is mixed into."""

    @property
    def engine(self) -> Engine:
        """Runs the model."""

    @property
    def config(self) -> Any:
        """With `eos_token_id` and the like, if it knows them."""

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """What the model's generation_config.json says."""

    def _texts(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        """The rows (T_i,) without their padding."""


class Generation:
    """`generate`, for a model with an engine."""

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
        """Continues texts; gives the tensor that transformers gives for the same arguments.

        Each text is written as if it were alone, whatever padding and company it has. Settings come from the defaults,
        then from the model's generation_config.json, then from `generation_config`, then from the arguments.

        Args:
            input_ids: prompts (B, T), integers; None for a text that begins with `bos_token_id`.
            attention_mask: (B, T), 0 where there is padding, left or right; by default what
                equals `pad_token_id` before and after a text, if that is given and ends no text.
            inputs: another name of `input_ids`.
            state: of B texts that the prompts continue, ours or transformers' list of five tensors.
            generation_config: a dictionary, or transformers' `GenerationConfig`.
            streamer: has `put` and `end`, such as `TextStreamer`.
            tokenizer: for `stop_strings`.
            logits_processor, stopping_criteria: as transformers has them.
            seed: of the draws; by default it comes from `generator`.
            generator: by default torch's own, so that runs repeat after `torch.manual_seed`.
            **options: see `Options`.

        Returns:
            Ids int64 (B * num_return_sequences, T + new ones) on the device of the prompts: each as it was given,
            padding included, then what was written, filled up with `pad_token_id`. With `return_dict_in_generate`, a
            `Generated`.

        Raises:
            RequestError: what is unknown, not offered or out of range.
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

        # Prompts are read once, however many texts begin with them.
        repeated = torch.arange(len(texts)).repeat_interleave(asked.num_return_sequences or 1)
        each = [texts[i] for i in repeated.tolist()]
        processors, criteria = tuple(logits_processor or ()), tuple(stopping_criteria or ())
        stopping = Stopping(asked, each, tokenizer, criteria)
        if asked.padding is None and stopping.is_possible and len(each) > 1:
            raise RequestError("pad_token_id: got None, expected a token to fill up texts that end before others")
        firsts, after = read_ragged(engine.forward, texts, before)
        logits, begun = (
            torch.stack(firsts)[repeated.to(firsts[0].device)],
            after.rows(repeated.to(after.position.device)),
        )

        room = torch.full((len(each), most), asked.padding or 0)
        sequences = torch.cat([ids.cpu()[repeated], room], dim=1)
        scores = Scores(asked, each, asked.least(width), processors, logits)
        writing = Writing(engine, sampler, scores, stopping, sequences, width, all_stay=bool(processors or criteria))
        lengths = writing.run(logits, begun, streamer)
        result = sequences[:, : width + max(lengths)].to(ids.device)
        if not asked.return_dict_in_generate:
            return result
        written = [row[width : width + length] for row, length in zip(sequences, lengths, strict=True)]
        return Generated(result, read_ragged(engine.forward, written, begun)[1])


def _own_settings(model: Model) -> Mapping[str, Any]:
    """The model's generation_config.json, or if it has none the tokens that its configuration knows."""
    if model.generation_config:
        return model.generation_config
    return {name: getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _prompts(ids: Any, asked: Options) -> Tensor:
    """The ids (B, T), int64."""
    if ids is None:
        if asked.bos_token_id is None:
            raise RequestError("input_ids: got None, and there is no bos_token_id that a text could begin with")
        return torch.tensor([[asked.bos_token_id]])
    if not isinstance(ids, Tensor):
        hint = "; write generate(**inputs)" if isinstance(ids, Mapping) else ""
        raise RequestError(f"input_ids: got {type(ids).__name__}, expected a tensor (B, T) of ids{hint}")
    if ids.ndim != 2 or 0 in ids.shape or ids.is_floating_point() or ids.dtype == torch.bool:
        raise RequestError(
            f"input_ids: got {ids.dtype} {tuple(ids.shape)}, expected integers (B, T), at least one each"
        )
    return ids.long()


def _mask(mask: Any, ids: Tensor, asked: Options) -> Tensor | None:
    """The mask given, or what can be told of padding without one."""
    if mask is None:
        if asked.pad_token_id is None or asked.pad_token_id in asked.ends:
            return None
        is_text = (ids != asked.pad_token_id).int()
        return (is_text.cumsum(1) * is_text.flip(1).cumsum(1).flip(1) > 0).long()
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise RequestError(f"attention_mask: got {got}, expected a tensor {tuple(ids.shape)}, as the ids")
    return mask


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    """The one given, else a number that the generator makes."""
    if seed is not None:
        return seed
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
