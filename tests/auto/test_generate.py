"""`generate` beside transformers' own, on the same weights."""

from __future__ import annotations

import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face
from oracle import Shape
from writer import Recorder, Writer, padded

from rwkv_engine import RWKV, RequestError
from rwkv_engine.auto.tokenizer import AutoTokenizer
from rwkv_engine.core.rwkv4_layouts import to_layout
from rwkv_engine.generation.scheduler import scheduler_of

SHAPE = Shape(n_layer=4, n_embd=24, n_att=24, n_vocab=77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hugging_face(oracle.random_weights(SHAPE, seed=9), SHAPE, tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def ours(folder):
    return Writer(RWKV.from_pretrained(folder))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def theirs(folder, transformers):
    transformers.logging.set_verbosity_error()
    return transformers.RwkvForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(1, SHAPE.n_vocab, (5, 7), generator=torch.Generator().manual_seed(0))


def both(ours, theirs, *arguments, **options):
    """What both give, which must be the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs warns of defaults
        # With its cache, one step of several rows mixes them: the shifted input (B, C) is broadcast beside (B, 1, C).
        expected = theirs.generate(*arguments, **{"use_cache": False, **options})
    got = ours.generate(*arguments, **options)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    return got


def never_ending(ours, prompts, n):
    """What is written if nothing ends a text, without the prompts."""
    return ours.generate(prompts, max_new_tokens=n, eos_token_id=None)[:, prompts.shape[1] :]


@pytest.mark.slow
def test_greedy_over_64_tokens(ours, theirs, prompts):
    got = both(ours, theirs, prompts, max_new_tokens=64, eos_token_id=None)
    assert got.shape == (5, 7 + 64)
    assert both(ours, theirs, prompts, eos_token_id=None).shape == (5, 7 + 20)
    assert min(len(set(row)) for row in got[:, 40:].tolist()) > 10, "texts that repeat themselves would show little"


def test_more_rows_than_decode_takes_at_once(ours, theirs):
    many = torch.randint(1, SHAPE.n_vocab, (20, 3), generator=torch.Generator().manual_seed(1))
    both(ours, theirs, many, max_new_tokens=24, eos_token_id=None)


@pytest.mark.slow
@pytest.mark.parametrize("pad", [None, 5])
def test_texts_of_a_batch_end_at_different_steps(pad, ours, theirs, prompts):
    written = never_ending(ours, prompts, 30)
    ends = [written[0, 4].item(), written[2, 9].item()]
    got = both(ours, theirs, prompts, max_new_tokens=30, eos_token_id=ends, pad_token_id=pad)
    lengths = {next((i for i, token in enumerate(row) if token in ends), 30) for row in written.tolist()}
    assert len(lengths) > 2, "they should end in different places"
    assert got[0, -1] == (ends[0] if pad is None else pad)
    alone = both(ours, theirs, prompts[:1], max_new_tokens=30, eos_token_id=ends[0])
    assert alone.shape[1] <= 7 + 5, "nothing comes after the end of the last text"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 19},
        {"max_length": 19, "max_new_tokens": 3},
        {"max_new_tokens": 12, "min_new_tokens": 9},
        {"max_new_tokens": 12, "min_length": 15},
        {"max_new_tokens": 40, "repetition_penalty": 1.3},
        {"max_new_tokens": 12, "suppress_tokens": [1, 2, 3, 4, 5, 6]},
        {"max_new_tokens": 12, "num_beams": 1, "early_stopping": True, "typical_p": 1.0},
        {"max_new_tokens": 12, "num_return_sequences": 1, "temperature": 1.0, "do_sample": False},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:generate. temperature")
def test_options_have_the_meaning_of_transformers(options, ours, theirs, prompts):
    written = never_ending(ours, prompts, 12)
    ends = [token for token, _ in Counter(written.flatten().tolist()).most_common(3)]
    both(ours, theirs, prompts, eos_token_id=ends, pad_token_id=0, **options)


def test_settings_come_from_the_model_then_the_configuration_then_the_arguments(
    folder, ours, theirs, prompts, transformers
):
    end = never_ending(ours, prompts, 8)[0, 5].item()
    own = {"eos_token_id": end, "pad_token_id": 3, "max_new_tokens": 9}
    model = Writer(RWKV.from_pretrained(folder), own)
    theirs = transformers.RwkvForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config = transformers.GenerationConfig(**own)
    for options in ({}, {"max_new_tokens": 4}, {"eos_token_id": None}, {"pad_token_id": 9}):
        both(model, theirs, prompts, **options)
    config = transformers.GenerationConfig(max_new_tokens=7, pad_token_id=0)
    got = both(model, theirs, prompts, generation_config=config)
    assert torch.equal(got, model.generate(prompts, generation_config={"max_new_tokens": 7, "pad_token_id": 0}))
    assert got.shape[1] == 7 + 7


def test_processors_and_criteria_of_transformers(ours, theirs, prompts, transformers):
    class AfterTwo(transformers.StoppingCriteria):
        """The recipe of the blog post: a pair of tokens ends the text."""

        def __call__(self, input_ids, scores, **kwargs):
            return (input_ids[:, -2:] == pair).all(dim=1)

    pair = never_ending(ours, prompts, 12)[1, 4:6]
    end = never_ending(ours, prompts, 12)[3, 2].item()
    options = {"max_new_tokens": 12, "eos_token_id": end, "pad_token_id": 0}
    bigrams = transformers.LogitsProcessorList([transformers.NoRepeatNGramLogitsProcessor(2)])
    both(ours, theirs, prompts, logits_processor=bigrams, **options)
    got = both(ours, theirs, prompts, stopping_criteria=transformers.StoppingCriteriaList([AfterTwo()]), **options)
    assert got[1, 7 + 6 :].eq(0).all(), "it ended there"
    plainly = [lambda ids, scores: ids[0, -2:].tolist() == pair.tolist()]
    one = ours.generate(prompts[1:2], stopping_criteria=plainly, max_new_tokens=12, eos_token_id=None)
    assert torch.equal(one[0, -2:], pair), "a plain answer will do"


def test_a_streamer_receives_the_same_values_as_from_transformers(ours, theirs, prompts):
    end = never_ending(ours, prompts, 8)[0, 3].item()
    for_us, for_them = Recorder(), Recorder()
    options = {"max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.generate(prompts[:2], streamer=for_them, use_cache=False, **options)
    ours.generate(prompts[:2], streamer=for_us, **options)
    assert [v.tolist() for v in for_us.values] == [v.tolist() for v in for_them.values]
    assert for_us.ended == 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("masked", [True, False])
def test_padding_does_not_change_texts(side, masked, ours, prompts):
    texts = [prompts[0, :2], prompts[1], prompts[2, :1], torch.tensor([3, 0, 0, 7])]  # what is inside a text is text
    ids, mask = padded(texts, side, pad=0)
    options = {"max_new_tokens": 15, "eos_token_id": 31, "pad_token_id": 0, "repetition_penalty": 1.2}
    got = ours.generate(ids, mask if masked else None, **options)
    assert torch.equal(got[:, : ids.shape[1]], ids), "prompts as they were given"
    for row, text in zip(got, texts, strict=True):
        alone = ours.generate(text[None], **options)[0, len(text) :]
        assert row[ids.shape[1] :].tolist() == [*alone.tolist(), *[0] * (got.shape[1] - ids.shape[1] - len(alone))]


@pytest.mark.parametrize("n", [3, 9])
def test_prompts_are_read_once_and_ended_texts_leave_the_batch(n, ours, prompts, monkeypatch):
    """Both for as many rows as a scheduler runs at a time, and for more."""
    model, read, steps = ours.engine.model, [], []
    of_read, of_step = model.read, model.step
    monkeypatch.setattr(model, "read", lambda *a, **k: read.append(tuple(a[0].shape)) or of_read(*a, **k))
    monkeypatch.setattr(model, "step", lambda *a: steps.append(len(a[0])) or of_step(*a))
    options = {"do_sample": True, "num_return_sequences": n, "max_new_tokens": 40, "seed": 1, "eos_token_id": [1, 2, 3]}
    got = ours.generate(prompts[:2], **options)
    assert got.shape[0] == 2 * n
    assert torch.equal(got[:, :7], prompts[:2].repeat_interleave(n, dim=0))
    assert read[0] in [(1, 14), (2, 7)]
    assert all(length == 1 for _, length in read[1:]), "steps of more rows than a decoder takes"
    batches = [rows for rows, _ in read[1:]] + steps
    assert 2 * n >= batches[0] >= 2 * n - 2 > batches[-1]
    assert batches == sorted(batches, reverse=True)


def test_rows_share_passes_with_the_texts_of_other_threads(ours, prompts):
    """As many rows as a scheduler has slots from each of three threads, and all that sampling depends on."""
    options = {"do_sample": True, "max_new_tokens": 30, "eos_token_id": [1, 2], "num_return_sequences": 4, "top_p": 0.9}
    options |= {"repetition_penalty": 1.2, "min_new_tokens": 5, "suppress_tokens": [7]}
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(ours.generate, prompts[:4], seed=seed, **options) for seed in range(3)]
        got = [call.result() for call in calls]
    for seed, sequences in enumerate(got):
        assert torch.equal(sequences, ours.generate(prompts[:4], seed=seed, **options))
        everywhere = [lambda ids, scores: scores]  # with processors, rows stay in step
        assert torch.equal(sequences, ours.generate(prompts[:4], seed=seed, logits_processor=everywhere, **options))
        assert not (sequences[:, 7:12] <= 2).logical_and(sequences[:, 7:12] >= 1).any()
        assert not (sequences[:, 7:] == 7).any()


def test_an_error_of_a_streamer_gives_the_slots_back(ours, prompts):
    class Broken(Recorder):
        def put(self, value):
            if len(self.values) == 3:
                raise ZeroDivisionError
            super().put(value)

    with pytest.raises(ZeroDivisionError):
        ours.generate(prompts, max_new_tokens=1000, eos_token_id=None, streamer=Broken())
    expected = never_ending(ours, prompts, 5)
    pool = scheduler_of(ours.engine)._steps._running._decoder.pool
    assert sorted(pool._free) == list(range(pool.dummy))
    assert expected.shape == (5, 5)


def chi_square(tokens, expected):
    n = len(tokens)
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    assert (counts[expected == 0] == 0).all(), "what transformers cuts is never drawn"
    possible = expected > 0
    return float(((counts - n * expected)[possible] ** 2 / (n * expected[possible])).sum()), int(possible.sum()) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 0},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 6},
        {"top_p": 0.8},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.9},
        {"min_p": 0.1},
        {"top_k": 0, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_samples_follow_the_distribution_of_transformers(options, ours, theirs, prompts):
    """Pearson's statistic of 20,000 draws: its mean is the degrees of freedom f, its deviation the root of 2 f."""
    prompt = prompts[:1]
    asked = {"do_sample": True, "max_new_tokens": 1, "eos_token_id": None, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = theirs.generate(prompt, output_scores=True, return_dict_in_generate=True, **asked).scores[0]
    drawn = ours.generate(prompt, num_return_sequences=20_000, seed=3, **asked)[:, -1]
    statistic, freedom = chi_square(drawn, torch.softmax(scores[0].double(), -1))
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_successive_samples_are_independent(ours, prompts):
    """The second token of the texts that begin with the commonest first one."""
    options = {"do_sample": True, "max_new_tokens": 2, "eos_token_id": None, "top_k": 0, "seed": 6}
    drawn = ours.generate(prompts[:1], num_return_sequences=20_000, **options)[:, -2:]
    first = drawn[:, 0].mode().values
    seconds = drawn[drawn[:, 0] == first, 1]
    logits, _ = ours.engine.forward(torch.cat([prompts[:1], first.view(1, 1)], dim=1))
    statistic, freedom = chi_square(seconds, torch.softmax(logits[0].double(), -1))
    assert len(seconds) > 1000
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_samples_repeat_after_manual_seed(ours, prompts):
    def write(**options):
        return ours.generate(prompts, do_sample=True, max_new_tokens=20, eos_token_id=None, **options)

    torch.manual_seed(5)
    first, second = write(), write()
    torch.manual_seed(5)
    assert torch.equal(write(), first)
    assert torch.equal(write(), second)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(8)
    assert torch.equal(write(generator=generator), write(generator=torch.Generator().manual_seed(8)))
    assert torch.equal(write(seed=8), write(seed=8))
    same = ours.generate(prompts[:1].expand(4, -1), do_sample=True, max_new_tokens=20, eos_token_id=None, seed=8)
    assert len({tuple(row) for row in same.tolist()}) == 4, "rows of one prompt are different texts"


def test_the_state_of_one_call_continues_in_the_next(ours, prompts):
    written = never_ending(ours, prompts, 12)[0].tolist()
    ends = written[3:4]
    options = {"eos_token_id": ends, "pad_token_id": 0}
    sequences, state = ours.generate(prompts, max_new_tokens=12, return_dict_in_generate=True, **options)
    assert torch.equal(sequences, ours.generate(prompts, max_new_tokens=12, **options))
    assert state.position[0] == 7 + written.index(ends[0]) + 1, "the row that ended has read its end and no padding"
    more = torch.tensor([[3, 4]] * 5)
    got = ours.generate(more, state=state, max_new_tokens=6, **options)
    for i, row in enumerate(sequences):
        whole = torch.cat([row[: state.position[i]], more[i]])
        alone = ours.generate(whole[None], max_new_tokens=6, **options)[0, len(whole) :]
        assert got[i, 2 : 2 + len(alone)].tolist() == alone.tolist()
    theirs = to_layout(state, "transformers")
    assert torch.equal(ours.generate(more, state=theirs, max_new_tokens=6, **options), got), "as transformers has it"


def test_a_text_without_a_prompt_begins_with_bos(ours, theirs):
    got = both(ours, theirs, max_new_tokens=10, bos_token_id=0, eos_token_id=None)
    assert got.shape == (1, 11)
    assert got[0, 0] == 0


@pytest.mark.slow
def test_stop_strings_end_texts_as_in_transformers(tales, transformers):
    model, tokenizer = Writer(tales), AutoTokenizer.from_pretrained("tales")
    theirs = transformers.RwkvForCausalLM.from_pretrained(tales.source, dtype=torch.float32).eval()
    of_theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tales.source / "tokenizer.json"))
    openings = ["Once upon a time there was a", "The wolf said to the fox, I"]
    inputs = tokenizer(openings, return_tensors="pt", max_length=4)
    ids = inputs.input_ids
    plain = tokenizer.batch_decode(model.generate(ids, max_new_tokens=40)[:, 4:])
    # A string may begin and end inside of tokens.
    halves = [next(word for word in text.split()[5:] if len(word) > 3)[1:] for text in plain]
    for strings, pieces in ((halves, ids), (halves[1], ids[1:]), (["no such string", "Once", halves[0]], ids[:1])):
        options = {"max_new_tokens": 40, "stop_strings": strings, "pad_token_id": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs.generate(pieces, tokenizer=of_theirs, use_cache=False, **options)
        assert torch.equal(model.generate(pieces, tokenizer=tokenizer, **options), expected)
        assert expected.shape[1] < 44
    assert torch.equal(model.generate(**inputs, max_new_tokens=5), model.generate(ids, max_new_tokens=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, "generate: max_tokens=5 is not supported; did you mean max_"),
        ({"xyz": 1}, "xyz=1 is not supported; leave it out; supported are max_new_tokens"),
        ({"max_new_token": None}, "max_new_token=None is not supported; did you mean max_new_tokens?"),
        ({"num_beams": 4}, "num_beams=4 is not supported; leave it out"),
        ({"assistant_model": object()}, "assistant_model=object is not supported"),
        ({"constraints": [1]}, "constraints=list is not supported"),
        ({"max_time": 1.0}, "max_time=1.0 is not supported"),
        ({"generation_config": {"num_beams": 2}}, "num_beams=2 is not supported"),
        ({"generation_config": 5}, "generation_config: got int"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"max_length": 7}, "max_length: got 7, but the prompt alone has 7"),
        ({"min_new_tokens": -1}, "min_new_tokens: got -1"),
        ({"num_return_sequences": 0}, "num_return_sequences: got 0"),
        ({"do_sample": True, "temperature": -1.0}, "temperature: got -1.0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p: got 1.5"),
        ({"do_sample": True, "seed": -1}, "seed: got -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0"),
        ({"eos_token_id": 77}, "eos_token_id: got 77, expected ids below 77"),
        ({"eos_token_id": "end"}, "eos_token_id: got 'end'"),
        ({"suppress_tokens": range(77)}, "every token is banned"),
        ({"stop_strings": "x"}, "stop_strings: got tokenizer=NoneType"),
        ({"stop_strings": [""], "tokenizer": None}, "stop_strings: got ''"),
        ({"eos_token_id": None, "stopping_criteria": [lambda ids, scores: False]}, "pad_token_id: got None"),
        ({"state": {}}, "state: got dict"),
        ({"state": [1]}, "layout transformers: got 1 tensors, expected 5"),
        ({"attention_mask": torch.ones(5, 6)}, "attention_mask: got"),
        ({"attention_mask": [[1]]}, "attention_mask: got list"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_options_are_refused_in_one_line(options, message, ours, prompts):
    with pytest.raises(RequestError) as caught:
        ours.generate(prompts, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), "at least one in each row"),
        (torch.zeros(3, dtype=torch.int64), "expected integers (B, T)"),
        (torch.zeros(1, 3), "got torch.float32"),
        ([[1, 2]], "got list, expected a tensor"),
        ({"input_ids": 1}, "write generate(**inputs)"),
        (torch.tensor([[99]]), "got the token id 99, expected ids from 0 to"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_prompts_are_refused(ids, message, ours):
    with pytest.raises(RequestError) as caught:
        ours.generate(ids)
    assert message in str(caught.value)


def test_a_state_of_other_texts_is_refused(ours, prompts, tales):
    state = ours.generate(prompts[:2], max_new_tokens=2, return_dict_in_generate=True).state
    with pytest.raises(RequestError, match="state of 2 sequences given for a batch of 5"):
        ours.generate(prompts, state=state)
    with pytest.raises(RequestError, match="belongs to another model"):
        Writer(tales).generate(prompts[:2], state=state)


def test_sampling_options_without_sampling_warn(ours, prompts):
    with pytest.warns(UserWarning, match="temperature, top_p have no effect without do_sample=True"):
        ours.generate(prompts, temperature=0.7, top_p=0.9)
