"""`compat="rwkv"` against the rwkv package itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoint_files import save_pth

from rwkv_engine import Checkpoint
from rwkv_engine.generation import Sampler, SamplingParams


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    return pytest.importorskip("rwkv.utils", reason="the rwkv package is not installed")


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0, 0.3, 0.85, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7])
def test_the_distribution_is_the_packages(temperature, top_p, top_k, peer, monkeypatch):
    drawn_from = []
    monkeypatch.setattr(np.random, "choice", lambda a, p: drawn_from.append(p) or 0)
    pipeline = peer.PIPELINE.__new__(peer.PIPELINE)
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, compat="rwkv"))
    generator = torch.Generator().manual_seed(0)
    for size in (5, 300, 20000):
        logits = torch.randn(size, generator=generator) * 3
        logits[1] = logits[0]  # a tie
        pipeline.sample_logits(logits.clone(), temperature, top_p, top_k)
        got = sampler.probabilities(logits[None])[0].numpy()
        np.testing.assert_allclose(got / got.sum(), drawn_from[-1], rtol=1e-5, atol=1e-12)


def test_top_p_of_one_often_is_greedy_there(peer):
    """The quirk itself: the sum of all probabilities misses 1.0."""
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    probs = Sampler(SamplingParams(top_p=1.0, compat="rwkv")).probabilities(logits)
    assert ((probs > 0).sum(-1) == 1).any()


@pytest.mark.slow
@pytest.mark.parametrize("penalties", [(0.2, 0.2, 0.996), (0.1, 1.5, 0.9), (3.0, 0.0, 1.0)], ids=str)
def test_the_whole_text_is_the_packages(penalties, peer, tales, tmp_path):
    """Greedy with penalties, over a few words, and over digits and blanks, which the package does not count."""
    from rwkv.model import RWKV as Peer

    checkpoint = Checkpoint.open(tales.source)
    weights = {name: checkpoint.read(name).float().numpy() for name in checkpoint.names}
    save_pth(weights, tmp_path / "m.pth")
    theirs = peer.PIPELINE(Peer(str(tmp_path / "m"), "cpu fp32", verbose=False), str(tales.source / "tokenizer.json"))
    presence, frequency, decay = penalties
    allowed = {i for text in ("0123456789 ", " king queen fox wolf, and the.") for i in tales.tokenizer.encode(text)}
    banned = [i for i in range(tales.config.n_vocab) if i not in allowed]
    args = peer.PIPELINE_ARGS(0, 0, 0, frequency, presence, decay, token_ban=banned, token_stop=[0])
    prompt = "1 2 3 4 5 6 7 8 9, said the king, "
    expected = theirs.generate(prompt, 40, args)
    asked = {"temperature": 0, "banned_tokens": banned}
    penalty = {"presence_penalty": presence, "frequency_penalty": frequency, "penalty_decay": decay}
    assert tales.generate(prompt, 40, **asked, **penalty, compat="rwkv") == expected
    assert any(digit in expected for digit in "0123456789")
    assert tales.generate(prompt, 40, **asked) != expected
    if frequency:
        assert tales.generate(prompt, 40, **asked, **penalty) != expected, "here digits count"
