"""Sealed states: opened as they were by their owner, and refused in every other case before anything is unpacked."""

from __future__ import annotations

import base64
import dataclasses
import struct

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from states import tensors

from rwkv_engine import RequestError
from rwkv_engine.core import State
from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.text.tokenizer import ByteTokenizer

try:
    import zstandard

    from rwkv_engine.portable import Sealer, SealingKeys, StateRefused
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra portable has", allow_module_level=True)

OLD, NEW = b"o" * 32, b"n" * 32


class Clock:
    time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture(scope="module")
def snapshot(talker):
    _, state = talker.forward(talker.encode_prompt("Once upon a time there was a king."))
    return Snapshot(state, (3, 5), 2)


def sealer_of(model, keys=(NEW,), tokenizer=None, **options):
    fingerprint = options.pop("fingerprint", model.fingerprint)
    return Sealer(SealingKeys(keys), model.config, fingerprint, tokenizer or model.tokenizer, **options)


def refusal(own, blob, owner="alice"):
    with pytest.raises(StateRefused) as refused:
        own.open(blob, owner)
    return refused.value.code


def test_what_is_sealed_is_opened_as_it_was(talker, snapshot):
    blob = sealer_of(talker).seal(snapshot, "alice")
    opened = sealer_of(talker).open(blob, "alice")
    assert all(map(torch.equal, tensors(opened.state), tensors(snapshot.state)))
    assert opened.state.fingerprint == snapshot.state.fingerprint
    assert (opened.unread, opened.n_shown) == ((3, 5), 2)
    assert len(blob) < 4 * sum(field.numel() for field in snapshot.state.fields.values()), "it is compressed"
    assert sealer_of(talker).seal(snapshot, "alice") != blob, "no two ciphertexts are alike"


def test_16_bits(talker, snapshot):
    own = sealer_of(talker)
    full, half = own.seal(snapshot, "a"), own.seal(snapshot, "a", "float16")
    assert len(half) < 0.6 * len(full)
    opened = own.open(half, "a").state
    for name, field in snapshot.state.fields.items():
        assert opened.fields[name].dtype == torch.float32
        assert torch.equal(opened.fields[name], field.half().float())
    # Numbers that do not fit: the initial state has -1e38.
    start = Snapshot(State.initial(talker.config))
    opened = own.open(own.seal(start, "a", "float16"), "a").state
    assert all(map(torch.equal, tensors(opened), tensors(start.state)))
    with pytest.raises(RequestError, match="dtype: got 'float8', expected one of float32, float16"):
        own.seal(snapshot, "a", "float8")


def test_rotation(talker, snapshot):
    old, both, new = (sealer_of(talker, keys) for keys in ([OLD], [NEW, OLD], [NEW]))
    before, after = old.seal(snapshot, "alice"), both.seal(snapshot, "alice")
    assert both.open(before, "alice").unread == both.open(after, "alice").unread == new.open(after, "alice").unread
    assert refusal(new, before) == refusal(old, after) == "state_invalid"


def test_expiry(talker, snapshot):
    clock = Clock()
    own = sealer_of(talker, seconds=60, clock=clock)
    blob = own.seal(snapshot, "alice")
    clock.time += 60
    own.open(blob, "alice")
    clock.time += 1
    assert refusal(own, blob) == "state_expired"
    assert refusal(own, blob, "eve") == "state_invalid", "who may not open it learns nothing about it"


def test_foreign(talker, snapshot):
    blob = sealer_of(talker).seal(snapshot, "alice")
    assert refusal(sealer_of(talker), blob, "eve") == "state_invalid"
    assert refusal(sealer_of(talker), blob, "") == "state_invalid"
    others = [sealer_of(talker, fingerprint="0" * 16)]
    config = dataclasses.replace(talker.config, layer_norm_eps=2 * talker.config.layer_norm_eps)
    others.append(Sealer(SealingKeys([NEW]), config, talker.fingerprint, talker.tokenizer))
    others.append(sealer_of(talker, tokenizer=ByteTokenizer()))

    class Swapped:
        """The same vocabulary, but for two tokens."""

        def __getattr__(self, name):
            return getattr(talker.tokenizer, name)

        def token_bytes(self, token):
            return talker.tokenizer.token_bytes({300: 301, 301: 300}.get(token, token))

    others.append(sealer_of(talker, tokenizer=Swapped()))
    assert [refusal(other, blob) for other in others] == ["state_of_another_model"] * 4
    assert refusal(others[0], blob, "eve") == "state_invalid"
    with pytest.raises(RequestError, match="another model"):
        others[0].seal(snapshot)


def test_sizes(talker, snapshot):
    own = sealer_of(talker)
    blob = own.seal(snapshot, "alice")
    assert len(own.seal(Snapshot(snapshot.state, (1,) * 16383, 0), "alice")) <= own.most_bytes
    assert refusal(own, bytes(own.most_bytes + 1)) == "state_too_large"
    assert refusal(own, blob + bytes(own.most_bytes)) == "state_too_large"
    with pytest.raises(RequestError, match="unread"):
        own.seal(Snapshot(snapshot.state, (1,) * 16384, 0))
    noise = {name: torch.rand_like(field) * 1e30 for name, field in snapshot.state.fields.items()}
    worst = State(noise, snapshot.state.position)
    assert len(own.seal(Snapshot(worst, tuple(range(300)) * 50, 0))) <= own.most_bytes


@pytest.fixture(scope="module")
def sealed(talker, snapshot):
    own = sealer_of(talker)
    return own, own.seal(snapshot, "alice")


@pytest.fixture
def unpacked(monkeypatch, sealed):
    """What was unpacked of blobs."""
    seen = []
    monkeypatch.setattr(sealed[0]._contents, "unpack", seen.append)
    return seen


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_change_is_noticed(sealed, data):
    own, blob = sealed
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "swap"]))
    at = data.draw(st.integers(0, len(blob) - 1) | st.integers(0, 120))
    if kind == "flip":
        changed = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
    elif kind == "cut":
        changed = blob[:at]
    elif kind == "add":
        changed = blob[:at] + data.draw(st.binary(min_size=1, max_size=20)) + blob[at:]
    else:  # a part of another state of the same owner in its place
        other = own.seal(own.open(blob, "alice"), "alice")
        n = data.draw(st.integers(1, 64))
        changed = blob[:at] + other[at : at + n] + blob[at + n :]
        if changed in (blob, other):
            return
    if changed != blob:
        assert refusal(own, changed) == "state_invalid"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"RWKS", b"RWKS\x01"]))
@example(b"", b"")
def test_any_bytes_are_refused(sealed, data, prefix):
    assert refusal(sealed[0], prefix + data) == "state_invalid"


def test_nothing_is_unpacked_that_was_not_proven(sealed, unpacked):
    own, blob = sealed
    for changed in (blob[:-1], blob[:-1] + bytes([blob[-1] ^ 1]), blob + b"x"):
        assert refusal(own, changed) == "state_invalid"
    assert refusal(own, blob, "eve") == "state_invalid"
    assert not unpacked
    own.open(blob, "alice")
    assert len(unpacked) == 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_even_content_with_the_key_is_checked(sealed, talker, data):
    """As if somebody had the key, or this program another version: an error, and no allocation without bounds."""
    contents = sealed[0]._contents
    packed = contents.pack(Snapshot(State.initial(talker.config), (1, 2), 1), "float32")
    at, byte = data.draw(st.integers(0, len(packed) - 1)), data.draw(st.integers(0, 255))
    for changed in (packed[:at] + bytes([byte]) + packed[at + 1 :], packed[:at], data.draw(st.binary(max_size=60))):
        try:
            contents.unpack(changed).state.check(talker.config, talker.fingerprint, 1)
        except ValueError:
            continue


def test_a_bomb_is_not_unpacked(sealed):
    contents = sealed[0]._contents
    with pytest.raises(ValueError, match=r"1000000000 bytes"):
        contents.unpack(zstandard.ZstdCompressor().compress(bytes(10**9)))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10**6))
    with pytest.raises(ValueError, match="bytes"):
        contents.unpack(unsized)
    header = struct.pack("<BxHIQ", 0, 5, 0, 2**64 - 1)
    with pytest.raises(ValueError, match="bytes"):
        contents.unpack(zstandard.ZstdCompressor().compress(header))


def test_keys(tmp_path):
    path = tmp_path / "keys"
    lines = [base64.b64encode(key).decode() for key in (NEW, OLD)]
    path.write_text(f"# the new one\n{lines[0]}\n\n {lines[1]} \n")
    keys = SealingKeys.read(path)
    assert keys.sealing == SealingKeys([NEW]).sealing
    assert keys.get(SealingKeys([OLD]).sealing[0]) == OLD
    for content, problem in (
        ("", "there is no key"),
        ("# nothing\n", "there is no key"),
        (lines[0] + "\nsecret\n", "line 2 is not a key, expected 32 random bytes"),
        (lines[0][:-5] + "\n", "line 1 is not a key"),
        ("schlüssel", "it is not ASCII"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(RequestError, match=problem) as refused:
            SealingKeys.read(path)
        assert "secret" not in str(refused.value)
    with pytest.raises(RequestError, match="cannot be read"):
        SealingKeys.read(tmp_path / "none")
    with pytest.raises(RequestError, match="got 31 bytes"):
        SealingKeys([b"x" * 31])
