"""How a call runs the model: all tokens at once with gradients, in chunks without them; padding is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.auto.padding import IGNORED, put_back, read_mask, texts_of
from rwkv_engine.core import State
from rwkv_engine.core.rwkv4_layouts import from_layout
from rwkv_engine.errors import RequestError, StrategyError
from rwkv_engine.models import Model
from rwkv_engine.runtime import Engine
from rwkv_engine.runtime.engine import CHUNK, check_tokens
from rwkv_engine.runtime.ragged import read_texts

ALL, LAST = slice(None), slice(-1, None)


class Reading:
    """Runs the model for one call."""

    def __init__(self, core: Model, engine: Engine, with_gradients: bool):
        self.core, self.engine, self.with_gradients = core, engine, with_gradients

    def logits(
        self, ids: Tensor, mask: Tensor | None, state: State, keep: slice | Tensor, layers: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, State]:
        """Logits (B, N, V) of the positions to keep; all hidden states (B, T, C) if `layers`; the state afterwards."""
        plain = mask is None and not layers and not self.with_gradients
        if plain and isinstance(keep, slice) and keep in (ALL, LAST):
            logits, state = self.engine.forward(ids, state, full_output=keep == ALL)
            return (logits if keep == ALL else logits.unsqueeze(1)), None, state
        features, state = self.features(ids, mask, state, layers)
        last = features[:, :, -1] if layers else features
        return self.core.head(last[:, keep]), features.unbind(2) if layers else None, state

    def features(self, ids: Tensor, mask: Tensor | None, state: State, layers: bool) -> tuple[Tensor, State]:
        """Outputs of the last LayerNorm, (B, T, C); with `layers` of all, (B, T, L + 1, C). Zeros if masked."""

        def read(tokens: Tensor, state: State, *, lengths: Sequence[int]) -> tuple[Tensor, State]:
            after: list[Tensor] | None = [] if layers else None
            x, state = self.core.read(tokens, state, after, lengths)
            x = self.core.ln_out(x)
            return (x if after is None else torch.stack([*(y.to(x.device) for y in after), x], dim=2)), state

        texts = list(ids) if mask is None else texts_of(ids, mask)
        outputs, state = read_texts(read, texts, state, None if self.with_gradients else CHUNK)
        return (torch.stack(outputs) if mask is None else put_back(outputs, mask)), state


def ids_of(input_ids: Any, attention_mask: Any, n_vocab: int) -> tuple[Tensor, Tensor | None]:
    """Ids, int64 (B, T), and their mask, bool (B, T); None if nothing is masked.

    Raises:
        RequestError: an unmasked id is not in the vocabulary, or the mask does not fit the ids.
    """
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"input_ids: expected integer ids (B, T), got {type(input_ids).__name__}: {error}"
        ) from error
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim != 2 or ids.numel() == 0:
        raise RequestError(f"input_ids: expected integer ids (B, T), got {ids.dtype} {tuple(ids.shape)}")
    ids = ids.long()
    mask = read_mask(ids, attention_mask)
    check_tokens(ids if mask is None else ids[mask].unsqueeze(0), n_vocab)
    return ids, mask


def state_of(state: Any, core: Model, batch: int) -> State:
    """The state to continue from: a `State` or transformers' list of five tensors; None begins new texts.

    Raises:
        RequestError: the state is neither, or is of another model or batch size.
    """
    with torch.inference_mode(False):
        if state is None:
            return State.initial(core.config, batch).to(core.device_map.home)
        if isinstance(state, list | tuple):
            state = from_layout(state, "transformers", core.config)
        if not isinstance(state, State):
            raise RequestError(
                f"state: got {type(state).__name__}, expected what an earlier call returned (output.state), or"
                " transformers' list of five tensors"
            )
        state.check(core.config, core.fingerprint, batch)
        # Tensors made in inference mode cannot take part in autograd.
        return state.clone() if any(t.is_inference() for t in state.fields.values()) else state


def needs_gradient(state: State) -> bool:
    """Whether a state's tensors are trained, or come from a call with gradients."""
    return any(tensor.requires_grad for tensor in state.fields.values())


def kept_places(logits_to_keep: int | Tensor, n: int) -> slice | Tensor:
    """Which of n positions to compute logits of.

    Raises:
        RequestError: the argument is neither a number of last positions nor an (N,) tensor of positions.
    """
    if isinstance(logits_to_keep, Tensor):
        places = logits_to_keep
        if places.ndim == 1 and places.dtype in (torch.int32, torch.int64) and (places.abs() <= n - 1).all():
            return places
    elif isinstance(logits_to_keep, int) and logits_to_keep >= 0:
        return slice(-logits_to_keep, None) if logits_to_keep else ALL
    raise RequestError(
        f"logits_to_keep: got {logits_to_keep!r}, expected how many last positions to keep, 0 for all, or an (N,)"
        f" tensor of positions below {n}"
    )


def checked_labels(labels: Any, ids: Tensor, n_vocab: int, ignored: int) -> Tensor:
    """Labels (B, T) int64.

    Raises:
        RequestError: the labels have another shape than the ids, or are not in the vocabulary.
    """
    given = torch.as_tensor(labels)
    if given.shape != ids.shape or given.is_floating_point() or given.dtype == torch.bool:
        raise RequestError(
            f"labels: got {given.dtype} {tuple(given.shape)}, expected integers of the shape of input_ids,"
            f" {tuple(ids.shape)}; they are shifted inside"
        )
    given = given.long()
    wrong = given[(given != ignored) & ((given < 0) | (given >= n_vocab))]
    if wrong.numel():
        raise RequestError(
            f"labels: got {int(wrong[0])}, expected ids below {n_vocab}, or {ignored} for positions that do not count"
        )
    return given


def refuse_inputs(inputs_embeds: Any, output_attentions: Any) -> None:
    """Refuses arguments of transformers' models that are not supported.

    Raises:
        RequestError: one of them was given.
    """
    if inputs_embeds is not None:
        raise RequestError("inputs_embeds: not supported, expected token ids; pass input_ids")
    if output_attentions:
        raise RequestError(
            "output_attentions: RWKV has no attention weights; leave it out, or see output_hidden_states"
        )


def mean_loss(logits: Tensor, targets: Tensor, n: int | Tensor | None) -> Tensor:
    """The mean cross-entropy of the targets that count, or their sum divided by `n`."""
    reduction = "mean" if n is None else "sum"
    rows, places = logits.flatten(0, 1), targets.flatten().to(logits.device)
    loss = F.cross_entropy(rows, places, ignore_index=IGNORED, reduction=reduction)
    return loss if n is None else loss / (n.to(loss.device) if isinstance(n, Tensor) else n)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise StrategyError("quantised weights have no gradient; load the model in a float type to train it")


def refuse_gradient(output: Tensor) -> Tensor:
    """The same output, with a `backward` that says why there is no gradient; torch would name a missing grad_fn."""
    refused: Tensor = _Refusal.apply(output, torch.zeros((), dtype=torch.float32, requires_grad=True))  # type: ignore[no-untyped-call]
    return refused
