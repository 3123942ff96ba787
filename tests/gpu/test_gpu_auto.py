"""The model as transformers has it, on the GPU: the ways to get there, padding, training, what is recorded."""

from __future__ import annotations

import oracle
import pytest
import torch
from auto_models import SHAPE, difference, folder_of, ours, random_ids
from conftest import require_gpu
from models.test_precision import DTYPES, TOKENS, error, plain_torch
from models.test_precision import SHAPE as WIDE

pytestmark = pytest.mark.gpu
require_gpu()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("auto"))


@pytest.mark.parametrize("way", ["to", "cuda", "device_map", "to dtype"])
@pytest.mark.parametrize("precision", DTYPES)
@torch.no_grad()
def test_every_way_there_is_the_same(way, precision, gpu, tmp_path):
    """`.to(0)` of the card, `device_map`, half precision before or after; against the oracle."""
    folder, dtype = folder_of(tmp_path, WIDE), DTYPES[precision]
    if way == "to":
        mine = ours(folder, torch_dtype=dtype).to(0 if gpu.startswith("cuda") else gpu)
    elif way == "cuda":
        mine = ours(folder, dtype=precision)
        mine = mine.cuda() if gpu.startswith("cuda") else mine.cpu()
    elif way == "to dtype":
        mine = ours(folder).to(gpu, dtype)
    else:
        mine = ours(folder, dtype=precision, device_map=gpu)
    assert mine.device.type == torch.device(gpu).type
    assert mine.dtype == mine.head.weight.dtype == dtype
    weights = oracle.random_weights(WIDE)
    expected, _ = oracle.forward(weights, TOKENS)
    bound = 2 * error(plain_torch(weights, TOKENS, dtype), expected)
    ids = torch.tensor([TOKENS])
    output = mine(ids.to(gpu))
    assert output.logits.device == mine.core.device_map.home
    assert error(output.logits[0].cpu(), expected) < bound
    state, rows = None, []
    for column in ids[:, :40].unbind(1):
        one = mine(column.unsqueeze(1), state=state)
        state = one.state
        rows.append(one.logits[0, 0])
    assert error(torch.stack(rows).cpu(), expected[:40]) < bound
    assert error(mine.cpu()(ids).logits[0], expected) < bound, "and back again"


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding(side, folder, gpu):
    mine = ours(folder, device_map=gpu)
    ids, lengths = random_ids(4, 40), [40, 1, 17, 33]
    mask = torch.zeros_like(ids)
    for row, n in zip(mask, lengths, strict=True):
        row[-n if side == "left" else 0 : None if side == "left" else n] = 1
    output = mine(ids.to(gpu), attention_mask=mask.to(gpu))
    for i, kept in enumerate(mask.bool()):
        alone = mine(ids[i : i + 1, kept].to(gpu))
        assert difference(output.logits[i, kept.to(gpu)], alone.logits[0]) < 1e-4
        assert not output.logits[i, ~kept.to(gpu)].any()
    assert output.state.position.tolist() == lengths


@pytest.mark.parametrize("before", [False, True])
def test_gradients_are_those_of_the_cpu(before, folder, gpu):
    """Whether the model became trainable there, or was brought there by whoever trains."""
    here, there, ids = ours(folder), ours(folder), random_ids(2, 40)
    if before:
        there.train()
    there.to(gpu)
    for model in (here, there):
        model(ids, labels=ids).loss.backward()
    for (name, p), q in zip(there.named_parameters(), here.parameters(), strict=True):
        assert p.grad.device.type == torch.device(gpu).type
        assert difference(p.grad, q.grad) < 1e-4, name


def test_a_recording_sees_what_is_trained(folder, gpu):
    """Single tokens are read by a recorded step, which must not remember weights or places of before."""
    mine, ids = ours(folder).to(gpu), random_ids(1, 1)
    mine.engine.forward(ids)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    for _ in range(2):
        loss = mine(random_ids(1, 9), labels=random_ids(1, 9)).loss
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            several = mine(ids, output_hidden_states=True).logits[0, -1]
        assert difference(mine.engine.forward(ids)[0][0], several) < 1e-4
    state = mine.state_dict()
    again = ours(folder).to(gpu)
    again.engine.forward(ids)
    again.load_state_dict(state)
    assert difference(again.engine.forward(ids)[0], mine.engine.forward(ids)[0]) < 1e-5


def test_a_short_fine_tune_lowers_the_loss(gpu):
    mine = ours("tales", device_map=gpu).train()
    ids = random_ids(1, 60, SHAPE)
    optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = mine(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
