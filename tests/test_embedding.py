"""Vectors of texts against the float64 oracle; each text alone, whatever is read beside it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import oracle
import oracle7
import pytest
import torch
from checkpoint_files import save_pth
from models.test_precision import error
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, RequestError, State, Strategy, TokenizerError, embedding
from rwkv_engine.embedding import POOLINGS, dimension, embed, of_state
from rwkv_engine.models import Model
from rwkv_engine.models.weights import InputMajor, Tiled
from rwkv_engine.native import cpu_kernels
from rwkv_engine.runtime import Engine, load_model

# Both read bytes.
SHAPE = Shape(n_layer=3, n_embd=32, n_att=48, n_ffn=80, n_vocab=256)
SHAPE_7 = oracle7.Shape(n_layer=3, n_head=2, head_size=16, n_ffn=80, n_vocab=256)
LENGTHS = [3, 1, 70, 3, 600, 2, 256, 257, 40, 1]
STRATEGIES = [
    "cpu fp32",
    "cpu bf16",
    "cpu fp16",
    "cpu fp32i8",
    "cpu bf16i8",
    "cpu fp32 *1 -> cpu bf16 *1 -> cpu fp32i8",
]
# RWKV versions and what they have; an RWKV-7 has no `state`.
each_pooling = pytest.mark.parametrize(
    ("version", "pooling"), [(4, "mean"), (4, "last"), (4, "state"), (7, "mean"), (7, "last")], scope="module"
)


@pytest.fixture(scope="module")
def version():
    """Where tests do not say otherwise."""
    return 4


@cache
def weights_of(version: int) -> dict[str, np.ndarray]:
    return oracle.random_weights(SHAPE) if version == 4 else oracle7.random_weights(SHAPE_7)


@pytest.fixture(scope="module")
def checkpoint(version, tmp_path_factory):
    return save_pth(weights_of(version), tmp_path_factory.mktemp("m") / "m.pth")


@pytest.fixture(scope="module")
def model(checkpoint):
    return RWKV.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(SHAPE.n_vocab, (length,), generator=generator) for length in LENGTHS]


@cache
def read_by_the_oracle(text: tuple[int, ...]) -> dict[str, np.ndarray]:
    _, seen = oracle.forward(weights_of(4), list(text))
    return seen


@cache
def hidden_by_the_oracle(version: int, text: tuple[int, ...]) -> np.ndarray:
    """(T, C), after the last LayerNorm."""
    weights = weights_of(version)
    if version == 7:  # a head of ones on the diagonal returns its inputs
        return oracle7.forward(weights | {"head.weight": np.eye(SHAPE_7.n_embd)}, list(text))[0]
    exact = {name: weights[name].astype(np.float64) for name in ("ln_out.weight", "ln_out.bias")}
    return np.array([oracle.layer_norm(x, exact, "ln_out") for x in read_by_the_oracle(text)["residual"][:, -1]])


def expected_of(version: int, text: list[int], pooling: str) -> np.ndarray:
    """By the equations, in float64."""
    if pooling == "state":
        seen = read_by_the_oracle(tuple(text))
        return (seen["sum_v"] / seen["sum_1"])[SHAPE.n_layer // 2 :].ravel()
    hidden = hidden_by_the_oracle(version, tuple(text))
    return hidden.mean(axis=0) if pooling == "mean" else hidden[-1]


def read_at_once(model: RWKV, text: torch.Tensor, pooling: str) -> torch.Tensor:
    """The same from one call of the model: no chunks, no batch."""
    rwkv = model.engine.model
    with torch.no_grad():
        hidden, state = rwkv.read(text[None], model.engine.initial_state())
        hidden = rwkv.ln_out(hidden[0])
    if pooling == "state":
        return of_state(state)[0]
    return hidden.double().mean(dim=0).float() if pooling == "mean" else hidden[-1]


def in_plain_torch(model: RWKV, checkpoint) -> Model:
    """The same rounded weights in torch's products, whose activations have the dtype of their weights."""
    plain = load_model(Checkpoint.open(checkpoint), Strategy.parse("cpu fp32"), trainable=True).requires_grad_(False)
    rounded = dict(model.engine.model.named_parameters())
    for name, module in model.engine.model.named_modules():
        if isinstance(module, Tiled | InputMajor):
            rounded[f"{name}.weight"] = torch.nn.Parameter(module.weight, requires_grad=False)
    for name, parameter in plain.named_parameters():
        parameter.data = rounded[name].data
    return plain


@pytest.mark.slow
@each_pooling
def test_vectors_equal_those_of_the_oracle(version, pooling, model, checkpoint, ids):
    expected = np.array([expected_of(version, text.tolist(), pooling) for text in ids])
    plain = load_model(Checkpoint.open(checkpoint), Strategy.parse("cpu fp32"), trainable=True)
    theirs = error(embed(Engine(plain), ids, pooling), expected)
    vectors = embed(model.engine, ids, pooling)
    assert vectors.shape == (len(ids), dimension(model.config, pooling))
    assert (vectors.dtype, vectors.device.type) == (torch.float32, "cpu")
    assert 0 < error(vectors, expected) < 4 * theirs < 1e-5  # ours has 4 partial sums, torch up to 64


@pytest.mark.slow
@each_pooling
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_vectors_do_not_depend_on_the_batch_in_any_strategy(version, strategy, pooling, checkpoint, ids):
    model = RWKV.from_pretrained(checkpoint, strategy)
    vectors = embed(model.engine, ids, pooling)
    expected = torch.stack([read_at_once(model, text, pooling) for text in ids])
    assert torch.allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    # And the strategy is the one asked for: coarser ones are about as near as plain torch in the same precision, which
    # sums in another order.
    exact = np.array([expected_of(version, text.tolist(), pooling) for text in ids])
    theirs = error(embed(Engine(in_plain_torch(model, checkpoint)), ids, pooling), exact)
    assert (error(vectors, exact) > 1e-4) == (strategy != "cpu fp32")
    assert error(vectors, exact) < 4 * theirs


@pytest.mark.slow
@pytest.mark.skipif(cpu_kernels.status().kind == "reference", reason="torch's products round by their size")
@each_pooling
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp32i8"])
def test_no_bit_depends_on_the_other_texts(strategy, pooling, checkpoint, ids):
    engine = RWKV.from_pretrained(checkpoint, strategy).engine
    alone = torch.cat([embed(engine, [text], pooling) for text in ids])
    for batch_size in (2, 3, 32):
        assert torch.equal(embed(engine, ids, pooling, batch_size=batch_size), alone)
    order = [7, 2, 9, 0, 4, 3, 8, 1, 6, 5]
    assert torch.equal(embed(engine, [ids[i] for i in order], pooling), alone[order])
    assert torch.equal(embed(engine, ids[2:5], pooling), alone[2:5])


@pytest.mark.slow
@each_pooling
def test_vectors_do_not_depend_on_the_chunk_length(pooling, model, ids):
    whole = embed(model.engine, ids, pooling)
    for chunk in (1, 7, 256, 10_000):
        vectors = embed(Engine(model.engine.model, chunk), ids, pooling)
        assert torch.allclose(vectors, whole, rtol=1e-5, atol=1e-6)


@each_pooling
def test_memory_is_bounded_and_no_logits_are_computed(pooling, model, ids, monkeypatch):
    rwkv = model.engine.model
    shapes, read = [], rwkv.read

    def watched(tokens, state, lengths):
        shapes.append((len(lengths), tokens.numel()))
        return read(tokens, state, lengths=lengths)

    def no_logits(x):
        raise AssertionError("logits are not needed")

    monkeypatch.setattr(rwkv, "read", watched)
    monkeypatch.setattr(rwkv.head, "forward", no_logits)
    monkeypatch.setattr(embedding, "ROWS", 300)
    steps = []
    embed(model.engine, ids, pooling, batch_size=4, progress=lambda *step: steps.append(step))
    assert max(texts for texts, _ in shapes) <= 4
    assert max(rows for _, rows in shapes) <= 300
    assert sum(rows for _, rows in shapes) == sum(LENGTHS), "nothing is padded, nothing read twice"
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (sum(LENGTHS), sum(LENGTHS))


@pytest.mark.slow
def test_vectors_are_in_the_order_of_the_texts(talker):
    texts = ["The king had three sons.", "Fée", "A fox.", "The king had three sons.", "x" * 1000]
    vectors = talker.embed(texts, batch_size=2)
    assert vectors.shape == (5, talker.config.n_embd)
    assert torch.allclose(vectors[0], vectors[3], rtol=1e-5, atol=1e-6)
    for text, vector in zip(texts, vectors, strict=True):
        assert torch.allclose(talker.embed(text), vector, rtol=1e-5, atol=1e-6)
    assert talker.embed(text).shape == (talker.config.n_embd,)
    assert talker.embed([]).shape == (0, talker.config.n_embd)
    assert torch.equal(talker.embed(iter(texts)), talker.embed(tuple(texts)))


def test_normalized_vectors_have_length_1(tales):
    texts = ["The king had three sons.", "A fox."]
    for pooling in POOLINGS:
        vectors, unit = tales.embed(texts, pooling), tales.embed(texts, pooling, normalize=True)
        assert not torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-3)
        assert torch.allclose(unit.norm(dim=1), torch.ones(2), atol=1e-6)
        assert torch.allclose(unit * vectors.norm(dim=1, keepdim=True), vectors, atol=1e-5)


def test_the_state_of_a_stream_gives_an_embedding(tales):
    stream = tales.stream("Once upon a time", max_new_tokens=20, seed=1)
    text = "Once upon a time" + "".join(stream)
    # Tokens written one by one are read by other kernels, and text encodes anew what was written token by token.
    free, _ = of_state(stream.state)[0], None
    assert torch.nn.functional.cosine_similarity(free, tales.embed(text, "state"), dim=0) > 0.99
    _, state = tales.forward(tales.tokenizer.encode(text))
    assert torch.allclose(of_state(state)[0], tales.embed(text, "state"), rtol=1e-5, atol=1e-6)


def test_the_initial_state_gives_zeros(tales):
    vectors = of_state(State.initial(tales.config, 2))
    assert torch.equal(vectors, torch.zeros(2, dimension(tales.config, "state")))


def test_a_state_of_an_rwkv7_is_refused(tmp_path):
    goose = RWKV.from_pretrained(save_pth(weights_of(7), tmp_path / "m.pth"))
    with pytest.raises(RequestError, match="got the fields att_shift, ffn_shift, wkv, expected a state of an RWKV-4"):
        of_state(goose.forward([1])[1])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("", {}, r"texts\[0\]: is empty, expected at least one token"),
        (["a", ""], {}, r"texts\[1\]: is empty"),
        (["a", None], {}, r"texts\[1\]: expected text, got NoneType"),
        (["a", b"b"], {}, r"texts\[1\]: expected text, got bytes b'b'"),
        (b"ab", {}, r"texts\[0\]: expected text, got int 97"),
        (["\ud800" * 1000], {}, r"texts\[0\]: expected text, got the lone surrogate '\\ud800' at character 0"),
        (5, {}, "texts: expected a text or several, got int"),
        (None, {}, "texts: expected a text or several, got NoneType"),
        ("a", {"pooling": "max"}, "pooling: got 'max', expected one of mean, last, state"),
        ("a", {"batch_size": 0}, "batch_size: got 0, expected a positive integer"),
        ("a", {"batch_size": 2.5}, "batch_size: got 2.5, expected a positive integer"),
    ],
    ids=str,
)
def test_invalid_texts_are_refused_in_one_line(texts, options, message, tales):
    with pytest.raises(RequestError, match=message) as raised:
        tales.embed(texts, **options)
    assert len(str(raised.value)) < 250
    assert "\n" not in str(raised.value)


def test_a_model_without_a_tokenizer_says_so(source):
    with pytest.raises(TokenizerError, match="give one"):
        RWKV.from_pretrained(source).embed("a")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_hidden_states_that_are_not_finite_are_refused(pooling, model, ids, monkeypatch):
    read = embedding.read_texts

    def damaged(core, texts, state):  # the last chunks of the longest text
        hidden, state = read(core, texts, state)
        return [rows * (math.inf if len(texts) == 1 else 1) for rows in hidden], state

    monkeypatch.setattr(embedding, "read_texts", damaged)
    with pytest.raises(RequestError, match=r"texts\[4\]: the hidden states are not finite"):
        embed(model.engine, ids, pooling)
