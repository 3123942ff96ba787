"""`compat.PIPELINE` writing: with `exact` token for token what the rwkv package writes, without it what it should."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from peer_package import rwkv_package

from rwkv_engine import Checkpoint, RequestError
from rwkv_engine.compat import PIPELINE, PIPELINE_ARGS, RWKV
from rwkv_engine.pipeline import EMBEDDED

TOKENIZER = str(EMBEDDED["tales"] / "tokenizer.json")
PROMPT = "Once upon a time there was a king, who had 3 sons"
SETTINGS = {
    "defaults": {},
    "cold": {"temperature": 0.6, "top_p": 0.5},
    "hot, few": {"temperature": 1.6, "top_k": 20, "top_p": 0.95},
    "greedy": {"temperature": 0},
    "top-p of 0": {"top_p": 0, "alpha_frequency": 1.0},
    "top-p of 1": {"top_p": 1.0, "alpha_decay": 0.9},
    "bans and stops": {"token_ban": [*range(1, 40)], "token_stop": [13, 14, 15, 256, 300], "chunk_len": 3},
}


def settings_for(name):
    """All of them where a token costs nothing."""
    return SETTINGS.values() if name == "random" else [SETTINGS["defaults"], SETTINGS["hot, few"]]


@pytest.fixture
def package(monkeypatch):
    return rwkv_package(monkeypatch)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The embedded model as a `.pth` in float32, and one of random weights, which writes half characters."""
    folder = tmp_path_factory.mktemp("pipeline")
    checkpoint = Checkpoint.open(EMBEDDED["tales"])
    save_pth({name: checkpoint.read(name).float().numpy() for name in checkpoint.names}, folder / "tales.pth")
    save_pth(oracle.random_weights(Shape(n_vocab=2048)), folder / "random.pth")
    return folder


def written(pipeline, args, count=64, state=None):
    """Text, pieces, and where the random generator is after them."""
    np.random.seed(5)
    pieces = []
    text = pipeline.generate(PROMPT, count, args, pieces.append, state)
    return text, pieces, np.random.get_state()[2], np.random.random()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tales", "random"])
def test_exact_is_the_package_bit_for_bit(name, package, files):
    """Over the package's own model: not only the draws, every logit they are made from is the same."""
    model = package.RWKV(str(files / name), "cpu fp32", verbose=False)
    for settings in settings_for(name):
        results = []
        for pipeline, args in (
            (package.PIPELINE(model, TOKENIZER), package.PIPELINE_ARGS(**settings)),
            (PIPELINE(model, TOKENIZER, exact=True), PIPELINE_ARGS(**settings)),
        ):
            seen = []
            draw = pipeline.sample_logits
            pipeline.sample_logits = lambda out, draw=draw, seen=seen, **how: (
                seen.append(out.clone()) or draw(out, **how)
            )
            results.append((written(pipeline, args, 40), torch.stack(seen)))
        (expected, logits), (got, ours) = results
        assert got == expected, settings
        assert torch.equal(ours, logits), settings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tales", "random"])
def test_exact_over_our_model_writes_the_same_text(name, package, files):
    theirs = package.PIPELINE(package.RWKV(str(files / name), "cpu fp32", verbose=False), TOKENIZER)
    ours = PIPELINE(RWKV(str(files / name), "cpu fp32", verbose=False), TOKENIZER, exact=True)
    texts = set()
    for settings in settings_for(name):
        if settings.get("top_p") == 1.0:
            continue  # whether a float32 sum reaches 1 is decided by the last bits of the logits
        expected = written(theirs, package.PIPELINE_ARGS(**settings))
        assert written(ours, PIPELINE_ARGS(**settings)) == expected, settings
        texts.add(expected[0])
    assert len(texts) > 1


@pytest.mark.slow
def test_the_state_given_to_generate_is_the_packages(package, files):
    """With `exact` it lacks the last token; otherwise it is what a reader of the whole text has."""
    models = [made(str(files / "tales"), "cpu fp32", verbose=False) for made in (package.RWKV, RWKV)]
    args = PIPELINE_ARGS(temperature=0)
    states = {}
    for exact in (True, False):
        ours, theirs = models[1].forward([1, 2], None)[1], models[0].forward([1, 2], None)[1]
        text = written(PIPELINE(models[1], TOKENIZER, exact), args, 9, ours)[0]
        assert text == written(package.PIPELINE(models[0], TOKENIZER), args, 9, theirs)[0]
        states[exact] = ours
        same = all((a - b).abs().max() < 1e-3 for a, b in zip(ours, theirs, strict=True))
        assert same == exact
    last = PIPELINE(models[1], TOKENIZER).encode(PROMPT + text)
    _, whole = models[1].forward([1, 2, *last], None)
    assert all((a - b).abs().max() < 1e-3 for a, b in zip(states[False], whole, strict=True))


def test_the_defaults_equal_the_packages(package):
    assert vars(PIPELINE_ARGS()) == vars(package.PIPELINE_ARGS())
    mine = [9]
    args = PIPELINE_ARGS(1.1, 0.9, 3, 0.4, 0.5, 0.6, mine, [8], 7)
    assert vars(args) == vars(package.PIPELINE_ARGS(1.1, 0.9, 3, 0.4, 0.5, 0.6, [9], [8], 7))
    mine.append(10)
    assert args.token_ban == [9, 10]
    PIPELINE_ARGS().token_ban.append(1)
    PIPELINE_ARGS().token_stop.append(1)
    assert PIPELINE_ARGS().token_ban == PIPELINE_ARGS().token_stop == []


@pytest.mark.parametrize(
    "text", ["", "\n", " a ", "a\r\n\r\nb  \n\n c", "\u3000a\u3000\n\u3000", "\n\n\t\n x\ty \n", "a\vb\x0c\n\x1c"]
)
def test_contexts_are_refined_as_in_the_package(text, package):
    theirs, ours = (made.__new__(made) for made in (package.PIPELINE, PIPELINE))
    assert ours.refine_context(text) == theirs.refine_context(text)


class Scripted:
    """Writes the given tokens, whatever it reads; a state is the list of what was read."""

    def __init__(self, tokens, n_vocab=300):
        self.tokens, self.n_vocab = list(tokens), n_vocab
        self.chunks = []

    def forward(self, tokens, state):
        state = [] if state is None else state
        state += tokens
        self.chunks.append(list(tokens))
        logits = torch.zeros(self.n_vocab)
        if self.tokens and len(self.chunks) >= self.prompts:
            logits[self.tokens[min(len(self.chunks) - self.prompts, len(self.tokens) - 1)]] = 60
        return logits, state

    prompts = 1  # chunks of the prompt


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A vocabulary of the 256 bytes, each with the id after its own."""
    path = tmp_path_factory.mktemp("world") / "bytes.txt"
    path.write_text("".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)))
    return path


def ids(data):
    return [byte + 1 for byte in data]


def generated(data, world, exact=False, **options):
    model = Scripted(ids(data))
    pieces = []
    text = PIPELINE(model, world, exact).generate("x", len(data), PIPELINE_ARGS(**options), pieces.append)
    assert text == "".join(pieces)
    return text, pieces


def test_characters_stay_whole_and_the_end_is_kept(world):
    assert generated("é😀!".encode(), world) == ("é😀!", ["é", "😀", "!"])
    half = "aé".encode()[:-1]
    assert generated(half, world) == ("a\ufffd", ["a", "\ufffd"])
    assert generated(half, world, exact=True) == ("a", ["a"])


def test_invalid_utf8_does_not_delay_the_text(world):
    assert generated(b"a\xffbc", world) == ("a\ufffdbc", ["a", "\ufffdb", "c"])
    assert generated(b"a\xffbc", world, exact=True) == ("a", ["a"])


@pytest.mark.parametrize(("exact", "read"), [(True, b"xab"), (False, b"xabc")])
def test_a_state_given_has_read_the_text(exact, read, world):
    state = ids(b"..")
    model = Scripted(ids(b"abc!"))
    assert PIPELINE(model, world, exact).generate("x", 3, state=state) == "abc"
    assert state == ids(b".." + read)
    state = ids(b"..")
    stops = PIPELINE_ARGS(token_stop=ids(b"!"))
    assert PIPELINE(Scripted(ids(b"abc!")), world, exact).generate("x", 9, stops, state=state) == "abc"
    assert state == ids(b"..xabc"), "what stops is never read"


def test_the_last_token_is_not_prefilled_when_its_logits_are_unused(world):
    model = Scripted(ids(b"abc"))
    PIPELINE(model, world).generate("x", 3)
    assert model.chunks == [[i] for i in ids(b"xab")]
    assert PIPELINE(model, world).generate("x", 0, state=[]) == ""
    assert len(model.chunks) == 3


def test_the_prompt_is_prefilled_in_chunks(world):
    model = Scripted(ids(b"ab"))
    model.prompts = 3
    assert PIPELINE(model, world).generate("12345", 2, PIPELINE_ARGS(chunk_len=2)) == "ab"
    assert model.chunks == [ids(b"12"), ids(b"34"), ids(b"5"), ids(b"a")]


@pytest.mark.parametrize("exact", [True, False])
def test_penalties(exact, world):
    """Written tokens only; blanks and digits pay for being there, and are not counted."""
    pipeline = PIPELINE(Scripted(ids(b"aa 1b")), world, exact)
    seen = []
    draw = pipeline.sample_logits
    pipeline.sample_logits = lambda out, **how: seen.append(out.clone()) or draw(out, **how)
    pipeline.generate("xb", 5, PIPELINE_ARGS(alpha_presence=3.0, alpha_frequency=2.0, alpha_decay=0.5))
    taken = torch.zeros(300)
    taken[ids(b"a")] = 3 + 2 * (0.25 + 0.125)
    taken[ids(b" 1")] = 3
    expected = torch.zeros(300)
    expected[ids(b"b")] = 60
    assert torch.equal(seen[-1], expected - taken)


def test_unsupported_options_are_refused(world):
    pipeline = PIPELINE(Scripted(ids(b"a")), world)
    refused = {
        "ctx: has no tokens": lambda: pipeline.generate(""),
        "token_count: got -1": lambda: pipeline.generate("x", -1),
        "chunk_len: got 0": lambda: pipeline.generate("x", 1, PIPELINE_ARGS(chunk_len=0)),
        "token_ban: got the token id 300, expected ids from 0 to 299": lambda: pipeline.generate(
            "x", 1, PIPELINE_ARGS(token_ban=[300])
        ),
        "token_ban: got 'a', expected integer": lambda: pipeline.generate("x", 1, PIPELINE_ARGS(token_ban=["a"])),
        "every token is banned": lambda: pipeline.generate("x", 1, PIPELINE_ARGS(token_ban=range(300))),
        "temperature: got -1": lambda: pipeline.generate("x", 1, PIPELINE_ARGS(temperature=-1)),
    }
    for message, ask in refused.items():
        with pytest.raises(RequestError) as error:
            ask()
        assert message in str(error.value)
    for exact in (True, False):
        with pytest.raises(RequestError, match="ctx: has no tokens"):
            PIPELINE(Scripted([]), world, exact).generate("", state=[])


def test_a_subclass_may_change_each_step(world):
    """Programs override methods of the pipeline, and call `sample_logits` by keyword."""

    class Loud(PIPELINE):
        def encode(self, x):
            return super().encode(x.upper())

        def decode(self, x):
            return super().decode(x).upper()

        def sample_logits(self, logits, temperature=1.0, top_p=0.85, top_k=0):
            return int(logits.argmax())

    model = Scripted(ids(b"abc"))
    assert Loud(model, world).generate("x", 3) == "ABC"
    assert model.chunks[0] == ids(b"X")
