"""`compat.RWKV` beside the rwkv package's own."""

from __future__ import annotations

import copy
import os

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth
from oracle import Shape
from peer_package import rwkv_package

import rwkv_engine
from rwkv_engine import CheckpointError, RequestError, StrategyError
from rwkv_engine.compat import RWKV
from rwkv_engine.core.rwkv4_layouts import from_layout

SHAPE = Shape(n_layer=3, n_embd=64, n_att=64, n_ffn=160, n_vocab=120)
TOKENS = np.random.default_rng(1).integers(0, SHAPE.n_vocab, 70).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_pth(oracle.random_weights(SHAPE), tmp_path_factory.mktemp("compat") / "m.pth")


@pytest.fixture(scope="module")
def model(path):
    return RWKV(model=str(path.with_suffix("")), strategy="cpu fp32", verbose=False)


@pytest.fixture
def package(monkeypatch):
    return rwkv_package(monkeypatch)


@pytest.fixture
def theirs(package, path):
    return package.RWKV(model=str(path), strategy="cpu fp32", verbose=False)


def close(got, expected):
    return got.shape == expected.shape and (got - expected).abs().max() / expected.abs().max() < 1e-4


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("full_output", [False, True])
@pytest.mark.parametrize("n", [1, 2, 70])
def test_logits_and_states_equal_the_packages(n, full_output, model, theirs):
    """One token alone has no dimension of tokens, asked for in full or not."""
    expected, state = theirs.forward(TOKENS[:n], None, full_output)
    logits, ours = model.forward(TOKENS[:n], None, full_output)
    assert logits.dtype == torch.float32
    assert close(logits, expected)
    assert type(ours) is list
    assert len(ours) == len(state) == 15
    for i, (got, want) in enumerate(zip(ours, state, strict=True)):
        assert got.dtype == want.dtype
        assert close(got, want), i
    assert close(model.forward([5], state)[0], theirs.forward([5], ours)[0])


@pytest.mark.slow
def test_64_greedy_tokens_equal_the_packages(model, theirs):
    def written(one):
        logits, state = one.forward(TOKENS[:9], None)
        tokens = []
        for _ in range(64):
            tokens.append(int(logits.argmax()))
            logits, state = one.forward([tokens[-1]], state)
        return tokens

    assert written(model) == written(theirs)
    assert len(set(written(model))) > 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_list_is_replaced_in_place(kind, model, theirs):
    """As in the package: what a program sees of the state it has given, copied, or kept is the same in both."""
    one = model if kind == "ours" else theirs
    _, state = one.forward(TOKENS[:20], None)
    tensors, deep = list(state), copy.deepcopy(state)
    _, again = one.forward(TOKENS[20:40], state)
    assert again is state
    assert not equal(state, deep)
    assert equal(tensors, deep), "the old tensors were written into"
    first, _ = one.forward(TOKENS[20:40], deep)
    second, _ = one.forward(TOKENS[20:40], [t.clone() for t in tensors])
    assert torch.equal(first, second)
    assert equal(deep, state)


def test_a_call_that_fails_leaves_the_state(model):
    _, state = model.forward(TOKENS[:20], None)
    before = list(state)
    with pytest.raises(RequestError, match="token id 120, expected ids from 0 to 119"):
        model.forward([1, SHAPE.n_vocab], state)
    assert equal(state, before)


def test_the_caller_owns_the_logits_and_the_state(model):
    logits, state = model.forward(TOKENS[:20], None)
    kept, tensors = logits.clone(), copy.deepcopy(state)
    logits[0] = -1e9
    state[3].fill_(0)
    logits, state = model.forward(TOKENS[:20], None)
    assert torch.equal(logits, kept)
    assert equal(state, tensors)


def test_states_are_saved_and_loaded(model, tmp_path):
    _, state = model.forward(TOKENS[:20], None)
    torch.save(state, tmp_path / "s.pth")
    loaded = torch.load(tmp_path / "s.pth", weights_only=True)
    assert equal(loaded, state)
    assert torch.equal(model.forward([1], loaded)[0], model.forward([1], state)[0])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp32 *2->cpu bf16", " cpu bf16 -> cpu fp32 *1 "])
def test_attributes_equal_the_packages(strategy, package, path):
    theirs, ours = (made(str(path), strategy, verbose=False) for made in (package.RWKV, RWKV))
    for name in ("MODEL_NAME", "strategy_string", "n_layer", "n_embd", "n_att", "n_ffn"):
        assert getattr(ours.args, name) == getattr(theirs.args, name), name
    assert ours.args.vocab_size == SHAPE.n_vocab
    assert [vars(layer) for layer in ours.strategy] == [vars(layer) for layer in theirs.strategy]
    assert (ours.version, ours.RESCALE_LAYER) == (theirs.version, theirs.RESCALE_LAYER)


def test_int8_says_so(path):
    model = RWKV(str(path), "cpu fp32i8 *2 -> cpu fp32", verbose=False)
    assert [layer.wtype for layer in model.strategy] == [torch.int8, torch.int8, torch.float32, torch.float32]


def test_int4_is_what_it_says(path):
    """The package accepts i4 and quantises nothing."""
    model = RWKV(str(path), "cpu fp32i4 *2 -> cpu fp32", verbose=False)
    assert [layer.wtype for layer in model.strategy] == [torch.uint8, torch.uint8, torch.float32, torch.float32]


@pytest.mark.parametrize("tokens", [TOKENS, tuple(TOKENS), np.array(TOKENS), torch.tensor(TOKENS)], ids=type)
def test_tokens_are_any_integers(tokens, model):
    assert torch.equal(model(tokens, None)[0], model.forward(TOKENS, None)[0])


@pytest.mark.parametrize("tokens", [[], 5, "", "ab", None, [1.0], [[1, 2]], torch.tensor([[1, 2]]), torch.tensor(1)])
def test_invalid_token_lists_are_refused(tokens, model):
    with pytest.raises(RequestError, match=r"^tokens: ") as refused:
        model.forward(tokens, None)
    assert "\n" not in str(refused.value)


def test_files_that_are_not_states_are_refused(model, tmp_path):
    _, state = model.forward([1], None)
    for wrong in (tuple(state), torch.stack(state), rwkv_engine.State.initial(model._config)):
        with pytest.raises(RequestError, match="expected None or a list of tensors"):
            model.forward([1], wrong)
    other = RWKV(save_pth(oracle.random_weights(Shape()), tmp_path / "o.pth"), "cpu fp32", False)
    with pytest.raises(RequestError, match="got 15 tensors, expected 10"):
        other.forward([1], state)


@pytest.mark.slow
def test_a_converted_file_is_refused_with_what_to_do(package, path, tmp_path):
    with pytest.raises(SystemExit):
        package.RWKV(str(path), "cpu fp32i8", verbose=False, convert_and_save_and_exit=str(tmp_path / "c"))
    for load in (
        lambda: RWKV(str(tmp_path / "c"), "cpu fp32i8"),
        lambda: rwkv_engine.Checkpoint.open(tmp_path / "c.pth"),
    ):
        with pytest.raises(CheckpointError, match=r"for the strategy 'cpu fp32i8'.*give the file it was made from"):
            load()


def test_a_conversion_is_refused_with_what_to_do(path, tmp_path):
    with pytest.raises(RequestError, match=r"rwkv-engine pack \S+m\.pth --output FILE\.safetensors"):
        RWKV(str(path), "cpu bf16", convert_and_save_and_exit=str(tmp_path / "c"))
    assert not list(tmp_path.iterdir())


def test_environment_variables(path, monkeypatch):
    """Only the one that asks for another model counts."""
    for name, value in {"RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "1", "RWKV_RESCALE_LAYER": "2"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    monkeypatch.setenv("RWKV_V7_ON", "0")
    logits, _ = RWKV(str(path), "cpu fp32", verbose=False).forward([1, 2], None)
    monkeypatch.setenv("RWKV_V7_ON", "1")
    with pytest.raises(RequestError, match=r"RWKV_V7_ON=1 asks for RWKV-7, .* is RWKV-4"):
        RWKV(str(path), "cpu fp32")
    monkeypatch.delenv("RWKV_V7_ON")
    assert {k: v for k, v in os.environ.items() if k in before} == before
    assert torch.equal(logits, rwkv_engine.RWKV.from_pretrained(path).forward([1, 2])[0])


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("cpu fp32i3", "found 'fp32i3'"),
        ("cpu fp32 *1", "are not assigned"),
        ("cpu fp32 *9", "too many layers"),
        ("gpu fp16", "expected a device"),
    ],
)
def test_strategies_that_the_package_misreads_are_refused(strategy, message, path):
    with pytest.raises(StrategyError, match=message):
        RWKV(str(path), strategy, verbose=False)


@pytest.mark.parametrize("name", ["missing", "missing.pth", "RWKV/rwkv-4-169m-pile"])
def test_a_missing_file_is_not_downloaded_or_searched_for(name, monkeypatch):
    monkeypatch.setattr("rwkv_engine.locate.download", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(CheckpointError, match=r"\.pth: no such file") as refused:
        RWKV(name, "cpu fp32")
    assert "from_pretrained" in str(refused.value)


def test_other_checkpoints_load_too(tmp_path, path, model):
    folder = save_hugging_face(oracle.random_weights(SHAPE), SHAPE, tmp_path / "m")
    assert torch.equal(RWKV(folder, "cpu fp32", False).forward(TOKENS, None)[0], model.forward(TOKENS, None)[0])
    save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth")
    assert RWKV(str(folder), "cpu fp32", False).args.n_layer == Shape().n_layer, "m.pth comes before m"
    assert RWKV("tales", "cpu fp32", False).args.vocab_size == 2048


def test_weights_are_elsewhere(model):
    assert not hasattr(model, "w")
    with pytest.raises(RequestError, match=r"Checkpoint\.open\(.*\)\.read"):
        model.w["emb.weight"]


def test_verbose_shows_the_plan(path, capsys):
    RWKV(str(path), "cpu fp32 *2 -> cpu bf16")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("RWKV-4, 3 layers and the head, 0.1 M parameters")
    assert [line.partition(",")[0] for line in lines[1:]] == ["* layers 0-1: cpu", "* layers 2"]
    RWKV(str(path), "cpu fp32", verbose=False)
    assert capsys.readouterr().out == ""


def test_a_state_for_the_engine(model, path):
    """What a program has of the package's goes on in the rest of this one."""
    _, state = model.forward(TOKENS[:20], None)
    engine = rwkv_engine.RWKV.from_pretrained(path)
    logits, _ = engine.forward(TOKENS[20:], from_layout(state, "rwkv", engine.config))
    assert torch.equal(logits, model.forward(TOKENS[20:], state)[0])
