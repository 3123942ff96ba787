"""A conversation keeps the state of exactly what was said."""

from __future__ import annotations

import itertools

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from states import FIELDS

from rwkv_engine import RWKV, RequestError, State
from rwkv_engine.chat import Chat
from rwkv_engine.text.templates import TEMPLATES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Reads bytes: a text has one encoding, so states can be compared with a fresh read."""
    path = tmp_path_factory.mktemp("chat") / "m.pth"
    return RWKV.from_pretrained(save_pth(oracle.random_weights(Shape(n_vocab=256)), path))


LETTERS = [i for i in range(256) if chr(i) not in "abc \n"]


@pytest.fixture
def chat(model):
    return Chat(model, TEMPLATES["world"], 20, seed=3, banned_tokens=LETTERS)


def same(state, model, text):
    _, expected = model.forward(list(text.encode()))
    assert state.position.tolist() == expected.position.tolist()
    for name in FIELDS:
        torch.testing.assert_close(getattr(state, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_the_state_is_that_of_the_text(chat, model):
    for message in ("Hi.", "And\n\nthen?"):
        shown = "".join(chat.reply(message))
        assert shown == chat.turns[-1].reply.lstrip()
    assert chat.text.startswith("User: Hi.\n\nAssistant:" + chat.turns[0].reply + "\n\nUser: And\nthen?\n\nAssistant:")
    assert "\n\n" not in chat.turns[0].reply
    same(chat.state, model, chat.text)


def test_the_preamble_is_prefilled_once(model):
    chat = Chat(model, TEMPLATES["bob-alice"], 5, seed=1)
    for _ in range(2):
        list(chat.reply("Hi."))
    assert chat.text.startswith(TEMPLATES["bob-alice"].preamble + "Bob: Hi.\n\nAlice:")
    assert chat.text.count("\nBob talks") == 1
    chat.reset()
    assert (chat.text, chat.state, chat.turns) == ("", None, [])


def test_undo_and_retry(chat, model):
    list(chat.reply("One"))
    first = chat.text
    list(chat.reply("Two"))
    second = chat.text
    replies = {chat.turns[-1].reply}
    for _ in range(3):
        list(chat.retry())
        assert len(chat.turns) == 2
        replies.add(chat.turns[-1].reply)
        same(chat.state, model, chat.text)
    assert len(replies) == 4, "every try is another one, under one seed"
    chat.undo()
    assert chat.text == first
    list(chat.reply("Two"))
    assert chat.text == second
    chat.undo()
    chat.undo()
    for act in (chat.undo, chat.retry):
        with pytest.raises(RequestError, match="nothing was said"):
            act()


def test_a_reply_that_is_broken_off_ends_there(chat, model):
    replies = chat.reply("Hi.")
    shown = "".join(itertools.islice(replies, 2))
    replies.close()
    assert chat.turns[-1].reply.lstrip() == shown
    same(chat.state, model, chat.text)
    list(chat.reply("Go on."))
    same(chat.state, model, chat.text)


def test_a_reply_that_is_dropped_is_in_the_conversation_as_far_as_it_was_read(chat, model):
    shown = "".join(itertools.islice(chat.reply("Hi."), 2))
    assert chat.turns[-1].reply.lstrip() == shown
    same(chat.state, model, chat.text)
    again = chat.reply("Go on.")
    first = next(again)
    other = chat.reply("And?")
    assert [turn.reply.lstrip() for turn in chat.turns] == [shown, first]
    assert list(again) == [], "a reply ends where another one begins"
    for piece in other:  # the conversation may be looked at in the meantime
        shown = chat.turns[-1].reply
        assert shown.endswith(piece)
        same(chat.state, model, chat.text)
    assert len(chat.turns) == 3
    assert chat.turns[-1].reply.startswith(shown)


def test_a_reply_that_was_never_iterated_is_not_in_the_conversation(chat):
    unread = chat.reply("Hi.")
    assert (chat.turns, chat.text) == ([], "")
    unread.close()
    assert (list(unread), chat.turns) == ([], [])
    begun = chat.reply("Hi.")
    next(begun)
    chat.reset()
    assert (list(begun), chat.turns) == ([], [])


UNREAD = """
from rwkv_engine import RWKV
from rwkv_engine.chat import Chat
from rwkv_engine.text.templates import TEMPLATES
chat = Chat(RWKV.from_pretrained("tales"), TEMPLATES["bob-alice"], max_new_tokens=100, seed=1)
reply = chat.reply("Hello")
print(next(reply))
"""


@pytest.mark.slow
def test_a_program_may_end_in_the_middle_of_a_reply(run_python):
    result = run_python(UNREAD)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip()


def test_an_error_in_a_reply_leaves_the_conversation_as_it_was(chat, monkeypatch):
    list(chat.reply("Hi."))
    before, turns = chat.text, list(chat.turns)
    for act in (lambda: chat.reply("More"), chat.retry):
        replies = act()
        next(replies)
        with monkeypatch.context() as patch:
            patch.setattr(chat.model.engine.model, "step", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                list(replies)
        assert (chat.text, chat.turns) == (before, turns)


def test_save_and_load(chat, model, tmp_path):
    list(chat.reply("Hi."))
    chat.save(tmp_path / "talk")
    again = Chat(model, TEMPLATES["bob-alice"], 20, seed=3, banned_tokens=LETTERS)
    again.load(tmp_path / "talk")
    assert (again.text, again.template.name) == (chat.text, "world")
    assert list(again.reply("More?")) == list(chat.reply("More?"))
    assert again.text == chat.text
    assert State.about(tmp_path / "talk")["template"] == "world"
    again.undo()
    with pytest.raises(RequestError, match="since what was loaded"):
        again.undo()


def test_what_cannot_be_loaded_or_saved_leaves_the_conversation_as_it_was(chat, tales, tmp_path):
    with pytest.raises(RequestError, match="nothing to save"):
        chat.save(tmp_path / "talk")
    list(chat.reply("Hi."))
    before = chat.text
    chat.save(tmp_path / "talk")
    stranger = Chat(tales, TEMPLATES["world"])
    with pytest.raises(RequestError, match="another model"):
        stranger.load(tmp_path / "talk")
    (tmp_path / "noise").write_bytes(b"noise")
    for name in ("noise", "missing"):
        with pytest.raises(RequestError, match=name):
            chat.load(tmp_path / name)
    with pytest.raises(RequestError, match="cannot be written"):
        chat.save(tmp_path / "no" / "folder")
    assert chat.text == before


def test_messages_that_make_no_sense_are_refused(chat):
    with pytest.raises(RequestError, match="empty"):
        chat.reply(" \n ")
    with pytest.raises(RequestError, match="no place for an input"):
        chat.reply("What is it?", "It.")
    for message in (5, None, b"Hi."):
        with pytest.raises(RequestError, match="message: expected text"):
            chat.reply(message)
    with pytest.raises(RequestError, match="input: expected text"):
        chat.reply("What is it?", 5)
    with pytest.raises(RequestError, match="message: expected text, got the lone surrogate") as caught:
        chat.reply("\udcff")
    assert len(str(caught.value)) < 200
    assert chat.turns == []


def test_wrong_arguments_are_refused_before_the_first_message(model):
    world = TEMPLATES["world"]
    for arguments, options, message in [
        (("tales", world), {}, "model: got 'tales', expected a model, as RWKV.from_pretrained returns it"),
        ((model, "world"), {}, "template: got 'world', expected a Template"),
        ((model, world), {"max_tokens": 3}, "max_tokens: there is no such argument; did you mean max_new_tokens?"),
        ((model, world), {"stop": "END"}, "stop: got 'END', expected a list of strings"),
        ((model, world), {"top_p": 7}, "top_p: got 7"),
    ]:
        with pytest.raises(RequestError) as caught:
            Chat(*arguments, **options)
        assert message in str(caught.value)


def test_a_stop_of_the_users_own_comes_on_top(model):
    chat = Chat(model, TEMPLATES["world"], 40, seed=3, banned_tokens=LETTERS, stop=["b"])
    list(chat.reply("Hi."))
    assert not {"b", "\n\n"} & set(chat.turns[0].reply)
