"""Attention masks: tokens that are masked are not there. A model reads what remains, each row as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.errors import RequestError

IGNORED = -100


def read_mask(ids: Tensor, attention_mask: Tensor | Sequence[Sequence[int]] | None) -> Tensor | None:
    """The mask as (B, T) bool, where the ids are; None where it masks nothing.

    Raises:
        RequestError: another shape than that of the ids, other values than 0 and 1, or a row with no token.
    """
    if attention_mask is None:
        return None
    mask = torch.as_tensor(attention_mask).to(ids.device)
    if mask.shape != ids.shape:
        raise RequestError(
            f"attention_mask: got shape {tuple(mask.shape)}, expected that of input_ids, {tuple(ids.shape)}: it tells"
            " which of them are tokens, and what came before is in the state"
        )
    if mask.dtype != torch.bool:
        if not ((mask == 0) | (mask == 1)).all():
            raise RequestError("attention_mask: expected 1 for a token and 0 for what is none")
        mask = mask != 0
    if mask.all():
        return None
    if not (filled := mask.any(dim=1)).all():
        rows = (~filled).nonzero().flatten().tolist()
        raise RequestError(f"attention_mask: masks all of row {rows[0]}, expected at least one token in each")
    return mask


def texts_of(ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The rows of (B, T) ids without what is masked: B times (T_i,)."""
    return list(ids) if mask is None else [row[kept] for row, kept in zip(ids, mask, strict=True)]


def put_back(outputs: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Outputs of each text's tokens, B times (T_i, ...), where the tokens were: (B, T, ...), zeros elsewhere."""
    flat = torch.cat(list(outputs))
    room = flat.new_zeros(*mask.shape, *flat.shape[1:])
    return room.index_put((mask.to(flat.device),), flat)


def next_labels(labels: Tensor, mask: Tensor | None) -> Tensor:
    """What each token is to predict: the label of the next one that is there, (B, T); `IGNORED` for each row's last."""
    if mask is None:
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    shifted = torch.full_like(labels, IGNORED)
    for row, kept, room in zip(labels, mask.to(labels.device), shifted, strict=True):
        places = kept.nonzero().flatten()
        room[places[:-1]] = row[places[1:]]
    return shifted
