"""Training an RWKV-7: gradients against difference quotients of the float64 oracle, which has no gradients itself."""

from __future__ import annotations

import numpy as np
import oracle7
import pytest
import torch
from checkpoint_files import save_pth
from torch.nn import functional as F

from rwkv_engine.auto import AutoModelForCausalLM

SHAPE = oracle7.Shape(n_layer=2, n_head=2, head_size=16, n_ffn=50, n_vocab=20, ranks=(5, 3, 7, 4))
IDS = np.random.default_rng(2).integers(0, SHAPE.n_vocab, 20).tolist()  # more than one part of the backward pass


def loss_of(weights: dict[str, np.ndarray]) -> float:
    """The mean cross entropy of the next token, by the equations."""
    logits = oracle7.forward(weights, IDS)[0][:-1]
    logits = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), IDS[1:]]))


@pytest.fixture
def model(tmp_path):
    return AutoModelForCausalLM.from_pretrained(save_pth(oracle7.random_weights(SHAPE), tmp_path / "m.pth")).train()


def test_every_gradient_is_the_slope_of_the_oracles_loss(model):
    """Along a random direction for each tensor."""
    weights = {name: value.astype(np.float64) for name, value in oracle7.random_weights(SHAPE).items()}
    loss = model(torch.tensor([IDS]), labels=torch.tensor([IDS])).loss
    loss.backward()
    assert abs(loss.item() - loss_of(weights)) < 1e-5
    rng, step = np.random.default_rng(3), 1e-5
    gradients = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
    assert gradients.keys() == weights.keys()
    for name, gradient in gradients.items():
        # Near the gradient's own direction, or the slope could be next to nothing.
        noise = rng.normal(0, 1, gradient.shape)
        direction = gradient / np.linalg.norm(gradient) + 0.5 * noise / np.linalg.norm(noise)
        ends = [
            loss_of(weights | {name: weights[name] + sign * step * direction.reshape(weights[name].shape)})
            for sign in (1, -1)
        ]
        slope, expected = (gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step)
        assert abs(slope - expected) < 1e-3 * abs(expected) + 1e-8, name


def test_gradients_flow_through_a_carried_state(model):
    """Two halves with the state between them are the whole text, but for what the border does not predict."""
    ids, labels = torch.tensor([IDS, IDS[::-1]]), torch.tensor([IDS, IDS[::-1]])
    first = model(ids[:, :9], labels=ids[:, :9], use_cache=True, num_items_in_batch=1)
    second = model(ids[:, 9:], labels=ids[:, 9:], state=first.state, num_items_in_batch=1)
    (first.loss + second.loss).backward()
    halves = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    labels[:, 9] = -100
    logits = model(ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(halves[name], p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max()), msg=name)


def test_padding_and_checkpointing_change_no_gradient(model):
    """Texts of different lengths in one batch train as each of them does alone."""
    texts = [IDS[:7], IDS[3:]]
    for text in texts:
        model(torch.tensor([text]), labels=torch.tensor([text]), num_items_in_batch=1).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    length = max(map(len, texts))
    ids = torch.tensor([[0] * (length - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (length - len(text)) + [1] * len(text) for text in texts])
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        labels = ids.masked_fill(mask == 0, -100)
        model(ids, attention_mask=mask, labels=labels, num_items_in_batch=1).loss.backward()
        for name, p in model.named_parameters():
            bound = 1e-4 * float(p.grad.abs().max())
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=bound, msg=name)


def test_a_few_steps_lower_the_loss_and_decoding_uses_what_was_trained(model):
    ids = torch.tensor([IDS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    model.eval()
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert loss_of(weights) < losses[0] / 4, "by the equations, too"
    begun = torch.tensor([IDS[:3]])
    with torch.no_grad():
        written = model.generate(begun, max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()
    expected = IDS[:3]
    for _ in range(8):
        expected = [*expected, int(oracle7.forward(weights, expected)[0][-1].argmax())]
    assert written == expected
