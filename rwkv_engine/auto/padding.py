"""Attention masks: a masked token is never read, so each row gets the result it would get alone without padding."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.errors import RequestError

IGNORED = -100


def read_mask(ids: Tensor, attention_mask: Tensor | Sequence[Sequence[int]] | None) -> Tensor | None:
    """The mask as bool (B, T) on the device of the ids; None if nothing is masked.

    Raises:
        RequestError: the mask has another shape than the ids, values other than 0 and 1, or a row without any token.
    """
    if attention_mask is None:
        return None
    mask = torch.as_tensor(attention_mask).to(ids.device)
    if mask.shape != ids.shape:
        raise RequestError(
            f"attention_mask: got shape {tuple(mask.shape)}, expected that of input_ids, {tuple(ids.shape)}: the mask"
            " covers only the ids of this call; earlier tokens are in the state"
        )
    if mask.dtype != torch.bool:
        if not ((mask == 0) | (mask == 1)).all():
            raise RequestError("attention_mask: expected 1 for a token and 0 for padding, got other values")
        mask = mask != 0
    if mask.all():
        return None
    if not (filled := mask.any(dim=1)).all():
        rows = (~filled).nonzero().flatten().tolist()
        raise RequestError(f"attention_mask: masks all of row {rows[0]}, expected at least one token in each row")
    return mask


def texts_of(ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The rows of ids (B, T) without masked tokens: B tensors (T_i,)."""
    return list(ids) if mask is None else [row[kept] for row, kept in zip(ids, mask, strict=True)]


def put_back(outputs: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Scatters outputs of each text's tokens, B times (T_i, ...), to their positions (B, T, ...); zeros elsewhere."""
    flat = torch.cat(list(outputs))
    room = flat.new_zeros(*mask.shape, *flat.shape[1:])
    return room.index_put((mask.to(flat.device),), flat)


def next_labels(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Shifts labels (B, T): each token predicts the label of the next unmasked one; each row's last is `IGNORED`."""
    if mask is None:
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    shifted = torch.full_like(labels, IGNORED)
    for row, kept, room in zip(labels, mask.to(labels.device), shifted, strict=True):
        places = kept.nonzero().flatten()
        room[places[:-1]] = row[places[1:]]
    return shifted


def seems_padded(ids: Tensor, pad: int, markers: Collection[int]) -> bool:
    """Whether rows of ids (B, T) seem to be filled up with `pad` at either end.

    One token at an end of every row may be a marker of the beginning or the end of a text (`markers`), if padding uses
    such a token. More than one, or one in some rows only, is padding.
    """
    is_pad = (ids == pad).long()
    for side in (is_pad, is_pad.flip(1)):
        run = side.cumprod(1).sum(1)  # how many padding tokens each row has at this end
        most, least = int(run.max()), int(run.min())
        if most > (1 if pad in markers and most == least else 0):
            return True
    return False


def warn_of_padding(ids: Tensor, pad: int | None, markers: Collection[int], stacklevel: int) -> None:
    """Warns if padding is about to be read as text, for want of an attention mask; once per calling line, by default.

    Args:
        ids: (B, T), given without an attention mask.
        pad: the padding token; None if it is not known.
        markers: tokens that begin or end a text.
        stacklevel: as for `warnings.warn`, counted from the caller of this function.
    """
    if pad is not None and seems_padded(ids, pad, markers):
        warnings.warn(
            f"input_ids: rows begin or end with the padding token {pad}, and without an attention_mask padding is read"
            " as text; pass the tokenizer's attention_mask too: model.generate(**inputs), model(**inputs)",
            stacklevel=stacklevel + 1,
        )
