"""Every writer replaces regular files only: a device, a pipe, a socket or a directory is refused and left as it was."""

from __future__ import annotations

import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rwkv_engine import RwkvError, State
from rwkv_engine.chat import Chat
from rwkv_engine.convert import to_hugging_face, to_pth
from rwkv_engine.convert.pack import pack, quantize
from rwkv_engine.sentence import RwkvEmbedding
from rwkv_engine.storage.atomic import file_problem, replace_atomically
from rwkv_engine.text.templates import TEMPLATES


def make_directory(path):
    path.mkdir()


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has at most 107 bytes
        listener.bind(path.name)
        os.chdir(here)


def make_device(path):
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make device nodes")


SPECIAL = [make_directory, make_pipe, make_socket, make_device]


def chat_with_text(model):
    chat = Chat(model, TEMPLATES["bob-alice"], max_new_tokens=1, seed=1)
    "".join(chat.reply("Hello"))
    return chat


WRITERS = {
    "State.save": lambda path, source, tales: State.initial(tales.config).save(path),
    "Chat.save": lambda path, source, tales: chat_with_text(tales).save(path),
    "to_pth": lambda path, source, tales: to_pth(source, path),
    "pack": lambda path, source, tales: pack(source, path),
    "quantize": lambda path, source, tales: quantize(source, path),
}
NAMES = {"to_pth": "out.pth"}


def refused_and_unchanged(make, path, write):
    make(path)
    before = os.lstat(path)
    beside = sorted(path.parent.iterdir())
    write()
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)
    assert sorted(path.parent.iterdir()) == beside


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_special_file_is_refused(writer, make, source, tales, tmp_path):
    path = tmp_path / NAMES.get(writer, "out.safetensors")

    def write():
        with pytest.raises(RwkvError, match=f"{path.name}: .*nothing was written"):
            WRITERS[writer](path, source, tales)

    refused_and_unchanged(make, path, write)


@pytest.mark.parametrize("make", SPECIAL)
def test_saved_embedding_settings_refuse_a_special_file(make, tmp_path):
    path = tmp_path / "rwkv_embedding.json"

    def write():
        with pytest.raises(RwkvError, match="nothing was written"):
            RwkvEmbedding("tales").save(str(tmp_path))

    refused_and_unchanged(make, path, write)


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize(
    "arguments", [("bench", "--json"), ("bench", "--plot"), ("embed", "tales", "-o")], ids=" ".join
)
def test_commands_refuse_a_special_file_before_they_begin(arguments, make, call, tmp_path):
    path = tmp_path / {"--json": "x.json", "--plot": "x.png", "-o": "x.npy"}[arguments[-1]]

    def write():
        code, _, errors = call(*arguments, str(path))
        assert code in (1, 2)
        assert "not a regular file; nothing was written" in errors

    refused_and_unchanged(make, path, write)


@pytest.mark.parametrize("make", SPECIAL)
def test_a_converted_directory_replaces_no_special_file(make, source, tmp_path):
    folder = tmp_path / "hf"
    to_hugging_face(source, folder)
    (folder / "model.safetensors").unlink()

    def write():
        with pytest.raises(RwkvError, match="cannot be written: is a "):
            to_hugging_face(source, folder)

    refused_and_unchanged(make, folder / "model.safetensors", write)


def write(path, text="new"):
    with replace_atomically(path) as temporary:
        temporary.write_text(text)


def test_a_path_that_becomes_a_special_file_is_refused(tmp_path):
    path = tmp_path / "x"

    def change_while_writing():
        with replace_atomically(path) as temporary:
            temporary.write_text("new")
            os.mkfifo(path)

    with pytest.raises(OSError, match="named pipe"):
        change_while_writing()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["old", None], ids=["to a file", "dangling"])
def test_a_symbolic_link_stays_and_its_target_is_replaced(text, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    if text:
        target.write_text(text)
    link.symlink_to("elsewhere/target")
    write(link)
    assert os.readlink(link) == "elsewhere/target"
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_symbolic_link_to_a_special_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "link", "/dev/null"):
        with pytest.raises(OSError, match="not a regular file"):
            write(tmp_path / path)
    assert stat.S_ISFIFO(os.stat(tmp_path / "link").st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    write(tmp_path / "x", "old")
    (tmp_path / "x").chmod(0o600)
    write(tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_a_missing_folder_is_named(tales, tmp_path):
    missing = tmp_path / "missing"
    state = tales.engine.initial_state()
    with pytest.raises(RwkvError, match=rf"a\.state: the state cannot be written: there is no folder {missing}$"):
        state.save(missing / "a.state")
    (tmp_path / "link").symlink_to(missing / "target")
    assert file_problem(tmp_path / "link") == f"there is no folder {missing}"
    assert file_problem(tmp_path / "new") is None


def test_threads_do_not_lose_the_file_mode_mask(tmp_path, monkeypatch):
    before = os.umask(0o027)
    original = os.umask

    def slow(mask):
        found = original(mask)
        time.sleep(0.001)  # another thread runs
        return found

    def save(i):
        with replace_atomically(tmp_path / str(i)) as temporary:
            temporary.touch()

    monkeypatch.setattr(os, "umask", slow)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(40)))
    assert original(before) == 0o027
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
