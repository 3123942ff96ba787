from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from rwkv_engine import Rwkv4Config, Strategy, StrategyError
from rwkv_engine.core.strategy_auto import RESERVE

CONFIG = Rwkv4Config(24, 64, 64, 256, 100)  # 25 layers with the head, as 1B5 has


def peer_plan(text: str, total: int) -> list[tuple[str, int, int]]:
    """How the `rwkv` package deals out layers: (device and dtype, resident, streamed) per segment."""
    segments = [part.split() for part in text.split("->")]
    plan, streamer, placed = [0] * len(segments), None, 0
    for i, words in enumerate(segments):
        if len(words) > 2:
            count = words[2].strip("*")
            if count.endswith("+"):
                streamer = i
            plan[i] = int(count.rstrip("+"))
            placed += plan[i]
            if placed >= total:
                plan[i] += total - placed
                break
    left, streamed = total - placed, 0
    if streamer is not None:
        streamed = left
    elif left > 0:
        free = [i for i, words in enumerate(segments) if len(words) == 2]
        for j, i in enumerate(free):
            plan[i] = left // (len(free) - j)
            left -= plan[i]
        if not free:
            plan[-1] += left
    return [(" ".join(words[:2]), plan[i], streamed if i == streamer else 0) for i, words in enumerate(segments)]


SAME_AS_THE_PEER = [
    "cpu fp32",
    "cpu bf16",
    "cuda fp16",
    "cuda:1 bf16",
    "cuda fp16i8",
    "cpu fp32i8",
    "cuda bf16i8",
    "mps fp16",
    "dml fp32",
    "cuda fp16 *25",
    "cuda fp16 *10 -> cpu fp32",
    "cuda fp16 *24 -> cpu fp32",
    "cuda fp16 *1 -> cpu fp32",
    "cuda fp16 *10 -> cpu fp32 *15",
    "cuda fp16 -> cpu fp32",
    "cuda fp16 -> cpu fp32 *1",
    "cuda fp16 -> cpu fp32 *24",
    "cuda fp16 -> cuda fp32 -> cpu fp32",
    "cuda fp16 *3 -> cuda fp32 -> cpu fp32",
    "cuda fp16 -> cuda fp32 *3 -> cpu fp32",
    "cuda fp16 -> cuda fp32 -> cpu fp32 *4",
    "cuda:0 fp16 -> cuda:1 fp16",
    "cuda:0 fp16 *10 -> cuda:1 fp16 *8 -> cpu fp32",
    "cuda:0 fp16 *10 -> cuda:1 fp16 *8 -> cpu fp32 *7",
    "cuda:0 fp16 -> cuda:1 fp16 -> cuda:2 fp16 -> cuda:3 fp16",
    "cuda fp16i8 *10 -> cuda fp16",
    "cuda fp16i8 *20 -> cuda fp16 *4 -> cpu fp32",
    "cuda fp16i8 *10 -> cuda fp16 *0+ -> cpu fp32 *1",
    "cuda fp16i8 *6 -> cuda fp16 *0+ -> cpu fp32 *1",
    "cuda fp16 *0+",
    "cuda fp16 *10+",
    "cuda fp16i8 *10+",
    "cuda fp16 *25+",
    "cuda fp16 *0+ -> cpu fp32 *1",
    "cuda fp16 *0+ -> cpu fp32 *20",
    "cpu fp32 *3 -> cuda fp16 *6+",
    "cpu fp32 *3 -> cuda fp16 *6+ -> cpu fp32 *2",
    "cuda fp16 *12+ -> cpu fp32 *12",
    "cpu fp32 *1 -> cpu bf16 *1 -> cpu fp16",
    "cpu fp32 *12 -> cpu bf16 *13",
    "cuda fp16 *5 -> cpu fp32 *5 -> cuda fp16 *5 -> cpu fp32",
    "cuda fp32 *2 -> cuda fp16 -> cuda fp32 *2",
    "cpu fp16i8 *8 -> cpu fp32",
    "dml fp32 *10 -> cpu fp32",
]


def peer_makes_sense(strategy: Strategy, plan: list[tuple[str, int, int]], total: int) -> bool:
    """Not where the peer ignores a segment, cuts a count short, or gives a segment more than it asks for."""
    asked = sum(segment.count or 0 for segment in strategy.segments)
    all_counted = all(segment.count is not None and not segment.streams for segment in strategy.segments)
    nothing_ignored = all(resident + streamed > 0 for _, resident, streamed in plan)
    return nothing_ignored and asked <= total and (asked == total or not all_counted)


@pytest.mark.parametrize("n_layer", [24, 12, 40])
@pytest.mark.parametrize("text", SAME_AS_THE_PEER)
def test_the_same_plan_as_the_rwkv_package(text, n_layer):
    config = Rwkv4Config(n_layer, 64, 64, 256, 100)
    strategy = Strategy.parse(text)
    expected = peer_plan(text, n_layer + 1)
    if not peer_makes_sense(strategy, expected, n_layer + 1):
        assert n_layer != 24, "the table is made for 25 layers"
        with pytest.raises(StrategyError):
            strategy.place(config)
        return
    got = []
    for segment, share in zip(strategy.segments, strategy.shares(config), strict=True):
        suffix = "" if segment.weight_format == "dense" else segment.weight_format
        assert {p.device for p in share} == {segment.device}
        resident = sum(p.resident for p in share)
        got.append((f"{segment.device} {segment.dtype}{suffix}", resident, len(share) - resident))
    assert got == expected
    assert len(strategy.place(config)) == n_layer + 1


def test_the_table_is_long_enough():
    assert len(set(SAME_AS_THE_PEER)) >= 40


@pytest.mark.parametrize(
    "text",
    [
        "cuda fp16*10->cpu fp32",
        "  cuda   fp16 * 10  ->   cpu fp32 ",
        "cuda fp16 *10->cpu fp32",
        "cuda fp16\t*10 -> cpu fp32",
    ],
)
def test_spaces_in_strategies_are_ignored(text):
    assert str(Strategy.parse(text)) == "cuda fp16 *10 -> cpu fp32"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "expected a device"),
        ("gpu fp16", 0, "expected a device"),
        ("CUDA fp16", 0, "expected a device"),
        ("-> cuda fp16", 0, "expected a device"),
        ("cuda", 4, "expected a precision"),
        ("cuda fp8", 5, "expected a precision"),
        ("cuda fp16i3", 5, "expected a precision"),
        ("cuda fp16 ->", 12, "expected a device"),
        ("cuda fp16 cpu fp32", 10, "expected '->'"),
        ("cuda fp16 *10 *5", 14, "expected '->'"),
        ("cuda fp16 *", 11, "expected a number of layers"),
        ("cuda fp16 *x", 11, "expected a number of layers"),
        ("cuda fp16 *0", 11, "places nothing"),
        ("cuda fp16 *2+ -> cuda fp16 *2+", 17, "only one segment can stream"),
        ("cpu fp32 *3+", 11, "layers are streamed to a GPU; the CPU reads main memory, so leave the + out"),
        ("cuda fp16 *3 -> cpu bf16*0 +", 27, "layers are streamed to a GPU"),
        ("cuda fp16 *30", 0, "too many layers"),
        ("cuda fp16 *20 -> cpu fp32 *6", 17, "too many layers"),
        ("cuda fp16 *25 -> cpu fp32", 17, "gets no layer"),
        ("cuda fp16 -> cpu fp32 *25", 0, "gets no layer"),
        ("cuda fp16 *10+ -> cpu fp32", 18, "gets no layer"),
        ("cuda fp16 *10 -> cpu fp32 *5", 17, "10 layers are not assigned"),
    ],
)
def test_errors_have_a_caret_at_the_mistake(text, column, message):
    with pytest.raises(StrategyError) as caught:
        Strategy.parse(text).place(CONFIG)
    explanation, shown, caret = str(caught.value).split("\n")
    assert message in explanation
    assert shown == f"  {text}"
    assert caret.index("^") - 2 == column


SEGMENTS = st.builds(
    "{} {}{}{}".format,
    st.sampled_from(["cpu", "cuda", "cuda:0", "cuda:12", "mps", "dml"]),
    st.sampled_from(["fp32", "fp16", "bf16"]),
    st.sampled_from(["", "i8", "i4"]),
    st.sampled_from(["", " *1", " *7", " *30"]),
)


@given(st.lists(SEGMENTS, min_size=1, max_size=4))
def test_parse_print_parse(segments):
    text = " -> ".join(segments)
    strategy = Strategy.parse(text)
    assert str(strategy) == text
    again = Strategy.parse(str(strategy))
    assert [str(s) for s in again.segments] == [str(s) for s in strategy.segments]


@given(st.lists(SEGMENTS, min_size=1, max_size=4))
def test_a_strategy_made_of_segments_equals_the_parsed_one(segments):
    text = " -> ".join(segments)
    parsed = Strategy.parse(text)
    made = Strategy.of([replace(segment, column=77) for segment in parsed.segments])
    assert made == parsed == Strategy.parse(f"  {text} ")
    assert made.text == text
    assert [s.column for s in made.segments] == [s.column for s in parsed.segments]


def test_weights_and_dtypes_are_edited_in_every_segment():
    parsed = Strategy.parse("cuda fp16i8*10->cuda:1 bf16 *2+ -> cpu fp32 *3")
    assert str(parsed.with_weights("dense")) == "cuda fp16 *10 -> cuda:1 bf16 *2+ -> cpu fp32 *3"
    assert str(parsed.with_weights("i8")) == "cuda fp16i8 *10 -> cuda:1 bf16i8 *2+ -> cpu fp32i8 *3"
    assert str(parsed.with_dtype("bf16")) == "cuda bf16i8 *10 -> cuda:1 bf16 *2+ -> cpu bf16 *3"
    for edit in (Strategy.with_weights, Strategy.with_dtype):
        with pytest.raises(ValueError, match="call resolve first"):
            edit(Strategy.parse("auto"), "i8")


def test_the_errors_of_an_edited_strategy_quote_what_the_user_wrote():
    edited = Strategy.parse("cpu fp32i8 *20->cpu  bf16 *6").with_weights("dense").with_dtype("fp16")
    with pytest.raises(StrategyError) as caught:
        edited.place(CONFIG)
    assert str(caught.value).endswith(f"\n  cpu fp32i8 *20->cpu  bf16 *6\n  {' ' * 16}^")


def test_only_the_grammar_has_patterns_of_strategies():
    """Elsewhere strategies are edited as data."""
    for path in (ROOT / "rwkv_engine").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.stem != "strategy_grammar":
            assert not re.search(r"fp(16|32)\|", text), f"{path}: a pattern of precisions"
            assert not re.search(r"cpu\|cuda", text), f"{path}: a pattern of devices"
            assert not re.search(r"""\b(split|partition|rpartition)\(["'] ?(->|\*)""", text), f"{path}: taken apart"


@given(st.text(alphabet="cpuda fp1632bi8>-*+:0", max_size=30))
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(StrategyError):
        assert len(Strategy.parse(text).place(CONFIG)) == 25


def test_explain_counts_every_byte():
    rows = Strategy.parse("cpu fp32").explain(CONFIG)
    assert [row[0] for row in rows] == ["0-23, head"]
    assert rows[0][3] == f"{CONFIG.n_params * 4 / 1e6:,.1f} MB"
    rows = Strategy.parse("cuda fp16i8 *6 -> cuda fp16 *0+ -> cpu fp32 *1").explain(CONFIG)
    assert [row[:3] for row in rows] == [
        ("0-5", "cuda", "float16, i8 weights"),
        ("6-23", "cuda", "float16, streamed"),
        ("head", "cpu", "float32"),
    ]


def test_a_plan_with_streamed_layers():
    """Their matrices are in main memory; the head, vectors and two buffers are on the GPU."""
    strategy = Strategy.parse("cuda:1 fp16 *6+")
    rows = strategy.explain(CONFIG)
    assert [row[:3] for row in rows] == [
        ("0-5", "cuda:1", "float16"),
        ("6-23", "cuda:1", "float16, streamed"),
        ("head", "cuda:1", "float16"),
    ]
    matrices = 2 * (5 * 64 * 64 + 2 * 64 * 256)  # of one layer
    assert strategy.streamed_nbytes(CONFIG) == 18 * matrices
    whole = Strategy.parse("cuda:1 fp16").nbytes(CONFIG)["cuda:1"]
    assert strategy.nbytes(CONFIG) == {"cpu": 18 * matrices, "cuda:1": whole - 18 * matrices + 2 * matrices}
    for nothing in ("cuda fp16", "cuda fp16 *24+", "cuda fp16 *25+", "cuda fp16 *24 -> cuda fp16 *0+"):
        assert Strategy.parse(nothing).streamed_nbytes(CONFIG) == 0
        assert not any("streamed" in row[2] for row in Strategy.parse(nothing).explain(CONFIG))
    assert sum(Strategy.parse("cuda fp16 *24+").nbytes(CONFIG).values()) == whole


def test_int8_has_scales_vectors_and_the_embedding_have_none():
    """Counted from the sizes: A = C = 64, F = 256, V = 100."""
    vectors = 4 * (2 * 64 + 3 * 64 + 2 * 64 + 4 * 64)  # decay and first, mixes of both kinds, two LayerNorms
    matrices = 5 * 64 * 64 + 2 * 64 * 256
    scales = 4 * (5 * 2 * 64 + 2 * (64 + 256))
    block, head = vectors + matrices + scales, 100 * 64 + 4 * (100 + 64) + 4 * 2 * 64
    for base, size in (("fp32", 4), ("bf16", 2)):
        first = block + 4 * 2 * 64 + size * 100 * 64  # with ln0 and the embedding
        assert nbytes(f"cpu {base}i8", slice(1)) == first
        assert nbytes(f"cpu {base}i8", slice(1, 2)) == block
        assert nbytes(f"cpu {base}i8", slice(24, None)) == head
        [row] = Strategy.parse(f"cpu {base}i8").explain(CONFIG)
        assert row[3] == f"{(first + 23 * block + head) / 1e6:,.1f} MB"


def test_int4_has_scales_of_columns_and_parameters_of_groups():
    """As above; a group of 64 weights has 36 bytes, 4.5 bits a weight."""
    vectors = 4 * (2 * 64 + 3 * 64 + 2 * 64 + 4 * 64)
    matrices = (5 * 64 * 64 + 2 * 64 * 256) // 64 * 36
    block = vectors + matrices + 4 * (6 * 64 + 256)
    assert nbytes("cpu fp32i4", slice(1, 2)) == block
    assert nbytes("cpu fp32i4", slice(24, None)) == 100 * 64 // 64 * 36 + 4 * 64 + 4 * 2 * 64


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that torch sees so many GPUs, with so much memory free on each and in main memory."""

    def pretend(*free: int, main: int | None = None) -> None:
        memory = {"cpu": main} | {f"cuda:{i}": n for i, n in enumerate(free)}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: len(free) > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr("rwkv_engine.core.strategy.free_memory", memory.__getitem__)

    return pretend


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mps fp16", "mps is not supported; use cuda or cpu"),
        ("dml fp32", "dml is not supported; use cuda or cpu"),
    ],
)
@pytest.mark.parametrize("count", [0, 2])
def test_unsupported_strategies_are_refused_with_an_alternative(text, message, count, gpus):
    gpus(*[1] * count)
    with pytest.raises(StrategyError, match=message):
        Strategy.parse(text).check_runnable()


@pytest.mark.parametrize(
    ("text", "count", "column", "message"),
    [
        ("cuda fp16", 0, 0, "there is no GPU that torch can use here (rwkv-engine info tells why); use cpu"),
        ("cpu fp32 *2 -> cuda:1 fp16", 0, 15, "there is no GPU that torch can use here"),
        ("cuda fp32 *2 -> cuda:1 fp16", 1, 16, "there is no cuda:1: torch sees cuda:0 alone"),
        ("cuda:1 fp32 *2 -> cpu fp32 -> cuda:12 bf16", 3, 30, "there is no cuda:12: torch sees cuda:0 to cuda:2"),
    ],
)
def test_a_missing_gpu_is_marked_by_a_caret(text, count, column, message, gpus):
    gpus(*[1] * count)
    with pytest.raises(StrategyError) as caught:
        Strategy.parse(text).check_runnable()
    explanation, shown, caret = str(caught.value).split("\n")
    assert message in explanation
    assert (shown, caret) == (f"  {text}", f"  {' ' * column}^")


@pytest.mark.parametrize(
    "text",
    [
        "cpu fp32",
        "cpu bf16",
        "cpu fp16",
        "cpu fp32i8",
        "cpu fp32i4",
        "cpu bf16i8 *3 -> cpu fp16i8 -> cpu bf16 -> cpu fp32 *1",
        "auto",
    ],
)
def test_cpu_strategies_run_anywhere(text, gpus):
    gpus()
    Strategy.parse(text).check_runnable()


@pytest.mark.parametrize(
    "text",
    [
        "cuda fp32",
        "cuda bf16i8",
        "cuda fp16i4",
        "cuda:0 fp16",
        "cuda fp16 *2+",
        "cpu fp32 *3 -> cuda:1 fp16i8 *0+ -> cuda:0 fp16 *1",
        "cpu fp32 *3 -> cuda bf16 -> cuda:1 fp16i8 *1 -> cpu fp16",
    ],
)
def test_gpu_strategies_run_where_the_gpus_are(text, gpus):
    gpus(1, 1)
    Strategy.parse(text).check_runnable()


def test_the_free_memory_of_a_missing_gpu_is_unknown(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: {"cuda": (5_000_000, 9), "cuda:0": (6_000_000, 9)}[device]
    )
    rows = Strategy.parse("cuda fp16 *2 -> cuda:0 fp32 -> cuda:3 fp16").explain(CONFIG)
    assert [row[4] for row in rows] == ["5 MB", "6 MB", "unknown"]


def nbytes(text: str, layers: slice = slice(None)) -> int:
    """Bytes of some layers of the model above, placed."""
    specs = CONFIG.tensors()
    of_layers = []
    for i, placement in enumerate(Strategy.parse(text).place(CONFIG)):
        last, first = i == CONFIG.n_layer, i == 0
        mine = [
            spec
            for n, spec in specs.items()
            if n.startswith(f"blocks.{i}.") or (last and n[:4] in ("ln_o", "head")) or (first and n.startswith("emb."))
        ]
        of_layers.append(placement.nbytes(mine))
    return sum(of_layers[layers])


def test_auto_without_a_gpu(gpus):
    auto = Strategy.parse(" auto ")
    assert str(auto) == "auto"
    needed = nbytes("cpu fp32")
    for free, expected in ((needed + 1, "cpu fp32"), (needed, "cpu bf16"), (None, "cpu fp32")):
        gpus(main=free)
        assert str(auto.resolve(CONFIG)) == expected
        assert auto.place(CONFIG) == Strategy.parse(expected).place(CONFIG)
    assert [row[0] for row in auto.explain(CONFIG)] == ["0-23, head"]


def half(layers: slice) -> int:
    """Free memory of a GPU that just holds these layers."""
    return RESERVE + nbytes("cpu fp16", layers)


def test_auto_fills_the_gpu_as_far_as_its_memory_goes(gpus):
    rest = nbytes("cpu fp32", slice(10, None))
    for free, main, expected in (
        ([half(slice(25))], 0, "cuda fp16"),
        ([half(slice(25)) - 1], None, "cuda fp16 *24 -> cpu fp32"),
        ([half(slice(10))], rest + 1, "cuda fp16 *10 -> cpu fp32"),
        ([half(slice(10))], rest, "cuda fp16 *10 -> cpu bf16"),
        ([half(slice(1))], None, "cuda fp16 *1 -> cpu fp32"),
        ([half(slice(1)) - 1], None, "cpu fp32"),
        ([0], 0, "cpu bf16"),
    ):
        gpus(*free, main=main)
        assert str(Strategy.parse("auto").resolve(CONFIG)) == expected


def test_auto_fills_one_gpu_after_the_other(gpus):
    for free, expected in (
        ([half(slice(25)), half(slice(25))], "cuda:0 fp16"),
        ([half(slice(10)), half(slice(10, 25))], "cuda:0 fp16 *10 -> cuda:1 fp16"),
        ([half(slice(10)), half(slice(10, 25)) - 1], "cuda:0 fp16 *10 -> cuda:1 fp16 *14 -> cpu fp32"),
        ([0, half(slice(25))], "cuda:1 fp16"),
        ([half(slice(3)), 0, half(slice(3, 5))], "cuda:0 fp16 *3 -> cuda:2 fp16 *2 -> cpu fp32"),
    ):
        gpus(*free)
        auto = Strategy.parse("auto").resolve(CONFIG)
        assert str(auto) == expected
        auto.check_runnable()


@pytest.mark.parametrize("text", [None, 5, b"cpu fp32", ["cpu fp32"]])
def test_a_strategy_that_is_not_text_is_refused(text):
    with pytest.raises(StrategyError, match=r"strategy: got .*, expected text such as 'cpu fp32' or 'auto'"):
        Strategy.parse(text)
