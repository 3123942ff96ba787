"""What each prompt format looks like, to the character: a model notices a space too many."""

from __future__ import annotations

import pytest

from rwkv_engine import RequestError
from rwkv_engine.text import end_as_trained
from rwkv_engine.text.reply_text import ReplyText
from rwkv_engine.text.templates import TEMPLATES, template_for

GOLDEN = {
    "bob-alice": "Bob: Name a fruit.\n\nAlice:",
    "user-bot": "User: Name a fruit.\n\nBot:",
    "qa": "Question: Name a fruit.\n\nAnswer:",
    "world": "User: Name a fruit.\n\nAssistant:",
    "g1": "User: Name a fruit.\n\nAssistant:",
    "g1-think": "User: Name a fruit.\n\nAssistant: <think",
    "g1-no-think": "User: Name a fruit.\n\nAssistant: <think>\n</think",
    "instruction": "Below is an instruction that describes a task. Write a response that appropriately completes the"
    " request.\n\n# Instruction:\nName a fruit.\n\n# Response:\n",
    "instruction-hf": "### Instruction: Name a fruit.\n### Response:",
}
GOLDEN_WITH_INPUT = {
    "instruction": "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request.\n\n# Instruction:\nName a fruit.\n\n# Input:\nIt is"
    " red.\n\n# Response:\n",
    "instruction-hf": "### Instruction: Name a fruit.\n### Input: It is red.\n### Response:",
}


def test_every_template_has_a_golden_text():
    assert GOLDEN.keys() == TEMPLATES.keys()
    assert all(name == template.name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("name", GOLDEN)
def test_without_input(name):
    assert TEMPLATES[name].render("Name a fruit.") == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_with_input(name):
    if name in GOLDEN_WITH_INPUT:
        assert TEMPLATES[name].render("Name a fruit.", "It is red.") == GOLDEN_WITH_INPUT[name]
    else:
        with pytest.raises(RequestError, match=f"{name} has no place for an input; use one of instruction"):
            TEMPLATES[name].render("Name a fruit.", "It is red.")


@pytest.mark.parametrize("name", GOLDEN)
def test_the_model_goes_on_without_a_space(name):
    """`Alice: ` would leave the model a token it has never seen: the space belongs to the reply's first word."""
    template = TEMPLATES[name]
    assert not template.turn.endswith(" ")
    assert template.preamble == "" or template.preamble.endswith(template.between)


def test_messages_cannot_end_their_turn_nor_fill_other_places():
    bob = TEMPLATES["bob-alice"]
    assert bob.render(" Hi.\r\n\r\n \n\nAlice: no\n") == "Bob: Hi.\nAlice: no\n\nAlice:"
    hugging_face = TEMPLATES["instruction-hf"]
    assert hugging_face.render("{input} {message}", "{message}") == (
        "### Instruction: {input} {message}\n### Input: {message}\n### Response:"
    )
    assert "a\n\nb" in TEMPLATES["instruction"].render("a\n\nb")


def test_the_vocabulary_determines_the_template():
    assert template_for(65536).name == "world"
    assert template_for(65536, 7).name == "g1"
    assert template_for(2048, 7).name == "bob-alice"
    assert template_for(50277).name == template_for(2048).name == "bob-alice"


def test_a_conversation_of_a_g1_model():
    """Earlier replies are written without a block of thoughts, and only the last turn begins one."""
    turns = [("Hi.\n\nWho\nare you?", "I am\n\nyou.")]
    before = (
        "System: Be kind.\n\nUser: Hi.\nWho\nare you?\n\nAssistant: I am\nyou.\n\nUser: Name a fruit.\n\nAssistant:"
    )
    for name, opening in [("g1", ""), ("g1-think", " <think"), ("g1-no-think", " <think>\n</think")]:
        assert TEMPLATES[name].conversation(turns, "Name a fruit.", "Be kind.") == before + opening
        assert TEMPLATES[name].conversation([], "Name a fruit.") == GOLDEN[name]
        assert TEMPLATES[name].conversation([], "a", "") == "\n\n" + TEMPLATES[name].render("a")
        assert TEMPLATES[name].stop == ("\n\nUser:",)


@pytest.mark.parametrize(
    ("opening", "text", "shown"),
    [
        ("", "  A pear.\n\nOr none. ", "A pear.\n\nOr none. "),
        (" <think", ">\nHm.\n</think>\nA pear.", "<think>\nHm.\n</think>\nA pear."),
        (" <think>\n</think", ">\nA > B.", "A > B."),
        (" <think>\n</think", ">>", ">"),
        (" <think>\n</think", "\n A pear.", "A pear."),
        (" <think", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_what_is_shown_of_a_reply(opening, text, shown, size):
    reply = ReplyText(opening)
    assert "".join(reply.add(text[i : i + size]) for i in range(0, len(text), size)) == shown
    assert ReplyText(opening, is_verbatim=True).add(text) == text


class Pile:
    """As much of the 20B vocabulary as matters here."""

    n_vocab = 50277

    def token_bytes(self, token):
        return {535: b"\n\n", 187: b"\n"}.get(token, b"x")

    def encode(self, text):
        return {"\n": [187]}[text]


@pytest.mark.parametrize(
    ("ids", "expected"), [([7, 535], [7, 187, 187]), ([535, 7], [535, 7]), ([187, 187], [187, 187])], ids=str
)
def test_a_blank_line_at_the_end_is_two_newlines_to_models_of_the_20b_vocabulary(ids, expected):
    assert end_as_trained(Pile(), ids) == expected
    pile = Pile()
    pile.n_vocab = 2048
    assert end_as_trained(pile, ids) == ids


def test_the_blank_line_in_the_real_vocabulary(data):
    from rwkv_engine.text import BpeTokenizer

    tokenizer = BpeTokenizer(data / "20B_tokenizer.json")
    ids = tokenizer.encode("Expert Answer:\n\n")
    assert ids[-1] == 535
    assert end_as_trained(tokenizer, ids) == [*ids[:-1], 187, 187]
