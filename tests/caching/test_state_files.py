"""States in files outlive the process, whenever it is killed; what is damaged or foreign is never used."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from dataclasses import replace

import pytest
import torch
from caching.test_state_cache import check, run, text
from oracle import Shape

from rwkv_engine import RWKV
from rwkv_engine.caching import StateCache
from rwkv_engine.caching.state_files import StateFiles
from rwkv_engine.caching.state_identity import identity_of
from rwkv_engine.core import State
from rwkv_engine.generation.scheduler import Scheduler

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
PROMPT = text(random.Random(0), 100)


@pytest.fixture(scope="module")
def path(each_version):
    return each_version


@pytest.fixture(scope="module")
def engine(path):
    return RWKV.from_pretrained(path).engine


def scheduler_with(engine, folder, **options):
    return Scheduler(engine.model, chunk=64, cache=StateCache(folder=folder, **options))


def hits(engine, folder, prompt=PROMPT, owner="", **options):
    """Whether a new process would find a prompt in the folder."""
    scheduler = scheduler_with(engine, folder, **options)
    [each] = run(scheduler, (*prompt, 1), owner=owner)
    check(engine, each)
    return scheduler.cache.statistics.file_hits


def test_another_process_finds_the_states(engine, tmp_path):
    folder = tmp_path / "some" / "states"
    first = scheduler_with(engine, folder)
    [each] = run(first, PROMPT)
    assert first.cache.statistics.files == len(list(folder.iterdir())) == 2
    assert first.cache.statistics.file_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0, "states tell what was in the prompt"
    second = scheduler_with(engine, folder)
    [again] = run(second, (*PROMPT, *each.tokens, 5))
    check(engine, again)
    statistics = second.cache.statistics
    assert (statistics.file_hits, statistics.tokens_saved, statistics.files) == (1, 100, 3)
    run(second, (*PROMPT, 3))
    assert second.cache.statistics.file_hits == 1, "it is in memory now"
    second.cache.clear()
    assert not list(folder.iterdir())


def test_a_model_whose_weights_were_changed_shares_no_file_with_what_it_was(path, tmp_path):
    changed = RWKV.from_pretrained(path).engine
    scheduler = scheduler_with(changed, tmp_path)
    with torch.no_grad():
        changed.model.ln_out.weight.mul_(2)
    scheduler.cache.clear()
    run(scheduler, PROMPT)
    assert scheduler.cache.statistics.files
    assert not hits(RWKV.from_pretrained(path).engine, tmp_path)


def test_no_memory_is_needed(engine, tmp_path):
    scheduler = scheduler_with(engine, tmp_path, memory_bytes=0)
    run(scheduler, PROMPT)
    for _ in range(2):
        [each] = run(scheduler, (*PROMPT, 1))
        check(engine, each)
    assert scheduler.cache.statistics.file_hits == 2
    assert scheduler.cache.statistics.n_bytes == 0


def test_other_owners_and_models_find_nothing(engine, path, tmp_path, monkeypatch):
    folder = tmp_path / "states"
    run(scheduler_with(engine, folder), PROMPT, owner="ann")
    assert hits(engine, folder, owner="ann")
    for other in ("", "bob", "an", "ann "):
        assert not hits(engine, folder, owner=other)
    weights = torch.load(path, weights_only=True)
    weights["blocks.1.ffn.value.weight"][3, 3] += 0.5  # which a fingerprint does not look at
    torch.save(weights, tmp_path / "changed.pth")
    changed = RWKV.from_pretrained(tmp_path / "changed.pth")
    assert changed.fingerprint == engine.model.fingerprint
    others = {strategy: RWKV.from_pretrained(path, strategy).engine for strategy in ("cpu bf16", "cpu fp32i8")}
    for name, other in {"changed": changed.engine, **others}.items():
        assert not hits(other, folder, owner="ann"), name
    identities = {identity_of(engine.model)}
    for name in ("ways.bfloat16_way", "ways.int8_way"):
        monkeypatch.setattr(f"rwkv_engine.caching.state_identity.{name}", lambda level: "another")
        identities.add(identity_of(engine.model))
    monkeypatch.setattr("rwkv_engine.caching.state_identity.__version__", "0.0.1")
    identities.add(identity_of(engine.model))
    assert len(identities) == 4


def files_of(folder):
    return sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[1]))


def damage(kind, folder, engine):
    short, long = files_of(folder)
    data = bytearray(long.read_bytes())
    if kind == "a number":
        data[-100] ^= 1
    elif kind == "the header":
        data[20] ^= 0x55
    elif kind == "cut":
        del data[len(data) // 2 :]
    elif kind == "empty":
        del data[:]
    elif kind == "another prefix":
        data = short.read_bytes()
    elif kind == "another owner's":
        run(scheduler_with(engine, folder.parent / "of bob"), text(random.Random(7), 100), owner="bob")
        data = files_of(folder.parent / "of bob")[1].read_bytes()
    elif kind == "another kind of file":
        data = b"hello"
    elif kind == "another's states":
        state = State.initial(engine.model.config)
        state.save(long)
        data = long.read_bytes()
    long.write_bytes(bytes(data))
    return long


@pytest.mark.parametrize(
    "kind",
    [
        "a number",
        "the header",
        "cut",
        "empty",
        "another prefix",
        "another owner's",
        "another kind of file",
        "another's states",
    ],
)
def test_what_is_damaged_is_removed_with_a_notice(kind, engine, tmp_path, capfd):
    folder = tmp_path / "states"
    run(scheduler_with(engine, folder), PROMPT)
    damaged = damage(kind, folder, engine)
    scheduler = scheduler_with(engine, folder)
    [each] = run(scheduler, (*PROMPT, 1))
    check(engine, each)
    assert scheduler.cache.statistics.tokens_saved == 64, "that of the shorter prefix"
    notice = capfd.readouterr().err
    assert notice.startswith("rwkv_engine: state cache: a file is removed, and its prompt read again: ")
    assert str(damaged) in notice
    assert hits(engine, folder), "it was read and kept again"
    assert not capfd.readouterr().err


def test_what_belongs_to_others_stays(engine, tmp_path):
    run(scheduler_with(engine, tmp_path), PROMPT)
    state = next(tmp_path.iterdir())
    others = [tmp_path / "notes.txt", tmp_path / f"{state.name}.copy", tmp_path / ".hidden"]
    for other in others:
        other.write_text("mine")
    (tmp_path / state.name.replace("-64-", "-65-").replace("-100-", "-101-")).mkdir()
    scheduler = scheduler_with(engine, tmp_path, disk_bytes=0)
    run(scheduler, text(random.Random(5), 100))
    scheduler.cache.clear()
    assert [other.read_text() for other in others] == ["mine"] * 3


def test_files_that_another_process_removes_are_read_again(engine, tmp_path, capfd):
    run(scheduler_with(engine, tmp_path), PROMPT)
    scheduler = scheduler_with(engine, tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    [each] = run(scheduler, (*PROMPT, 1))
    check(engine, each)
    assert scheduler.cache.statistics.misses == 1
    assert not capfd.readouterr().err


def test_files_keep_to_their_limit(engine, tmp_path):
    run(scheduler_with(engine, tmp_path), PROMPT)
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    limit = 4 * size + 4096
    rng = random.Random(1)
    scheduler = scheduler_with(engine, tmp_path, disk_bytes=limit)
    scheduler.cache.pin(PROMPT)
    for _ in range(9):
        run(scheduler, text(rng, 30))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert scheduler.cache.statistics.file_evictions >= 6
    assert hits(engine, tmp_path), "it is pinned"


def test_processes_that_share_a_folder_keep_to_the_limit_together(engine, tmp_path):
    state, limit = replace(State.initial(engine.model.config), position=torch.tensor([3])), 30_000
    processes = [StateFiles(tmp_path, "0" * 16, limit) for _ in range(4)]
    for i in range(40):
        time.sleep(0.005)  # the clock of a folder's changes is no finer
        files = processes[i % 4]
        files.add(files.name("", (i, i, i)), state)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert len(list(tmp_path.iterdir())) > 4
    time.sleep(0.005)
    assert processes[0].longest("", (39, 39, 39, 4), 0), "what another process has added"


@pytest.mark.parametrize("why", ["the disk is full", "the folder is gone", "no room is left"])
def test_what_cannot_be_written_is_a_notice(why, engine, tmp_path, capfd):
    folder = tmp_path / "states"
    scheduler = scheduler_with(engine, folder, disk_bytes=100 if why == "no room is left" else 10**9)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if why == "the folder is gone":
        shutil.rmtree(folder)
    try:
        if why == "the disk is full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        requests = run(scheduler, PROMPT, (*PROMPT, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for each in requests:
        check(engine, each)
    statistics = scheduler.cache.statistics
    assert (statistics.hits, statistics.files, statistics.file_bytes) == (1, 0, 0)
    assert (
        capfd.readouterr().err.count("state cache: states are kept in memory only, until they can be written again: ")
        == 1
    )
    assert not folder.exists() or not list(folder.iterdir())
    if why == "the disk is full":
        run(scheduler, text(random.Random(3), 20))
        assert scheduler.cache.statistics.files == 1, "there is room again"


def test_what_a_killed_process_left_is_removed(engine, tmp_path):
    run(scheduler_with(engine, tmp_path), PROMPT)
    name = next(tmp_path.iterdir()).name
    old, young = tmp_path / f".{name}.abc", tmp_path / f".{name}.def"
    for left in (old, young):
        left.mkdir()
        (left / name).write_bytes(b"half")
    os.utime(old, (time.time() - 100,) * 2)
    assert hits(engine, tmp_path)
    assert not old.exists()
    assert young.exists(), "another process may be writing it"


# Starting Python takes longer than all else, so the processes that are killed are forked from one.
KILLER = """
import itertools, os, random, signal, sys, time
from pathlib import Path
import torch
from rwkv_engine.core import Rwkv4Config, State
from rwkv_engine.caching.state_files import StateFiles

def write(folder, begin, output):
    torch.set_num_threads(1)
    files = StateFiles(folder, "0" * 16, 10**9)
    state = State.initial(Rwkv4Config(2, 4000, 4000, 8, 9))
    state.position.fill_(3)
    for i in itertools.count(begin):
        for field in state.fields.values():
            field.fill_(i)
        files.add(files.name("", (i, i, i)), state)
        os.write(output, b"%d " % i)

rng, begin = random.Random(0), 0
for _ in range(50):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        write(Path(sys.argv[1]), begin, writing)
    os.close(writing)
    first = os.read(reading, 4096)
    time.sleep(rng.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as rest:
        finished = [int(word) for word in (first + rest.read()).split()]
    assert finished == list(range(begin, begin + len(finished))), finished
    begin += len(finished) + 1  # after the one that was being written
    print(*finished)
"""


@pytest.mark.slow
def test_a_killed_process_loses_no_finished_state(tmp_path, run_python, capfd):
    result = run_python(KILLER, str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 50
    finished = [int(word) for word in result.stdout.split()]
    files = StateFiles(tmp_path, "0" * 16, 10**9)
    for i in finished:
        state = files.longest("", (i, i, i), 0)
        assert state is not None
        assert all(bool((field == i).all()) for field in state.fields.values())
    for i in range(max(finished) + 2):  # what was being written is complete, or is not there
        files.longest("", (i, i, i), 0)
    assert files.n_states == sum(not path.name.startswith(".") for path in tmp_path.iterdir()) <= len(finished) + 50
    assert not result.stderr
    assert not capfd.readouterr().err, "not even a notice of a damaged one"
