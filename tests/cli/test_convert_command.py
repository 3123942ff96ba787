"""`rwkv-engine convert`: a whole directory or file, or one line and nothing."""

from __future__ import annotations

import os
import re
import signal
import sys
import types

import pytest
import torch
from checkpoint_files import save_pth
from conftest import ROOT

from rwkv_engine import RWKV, Checkpoint, CheckpointError
from rwkv_engine.pipeline import EMBEDDED

TALES_TOKENIZER = EMBEDDED["tales"] / "tokenizer.json"


def run(call, text, source):
    return call(*text.format(source=source, folder=source.parent, tokenizer=TALES_TOKENIZER).split())


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "options",
    [
        "--checkpoint_file {source} --output_dir {folder}/hf",
        "--checkpoint-file {source} --output-dir {folder}/hf",
        "--checkpoint_file={source} --output-dir={folder}/hf --is_chat --max_shard_size 5GB",
    ],
)
def test_the_options_of_old_with_dashes_or_underscores(options, call, source):
    code, text, errors = run(call, f"convert {options}", source)
    assert (code, text) == (0, ""), errors
    folder = source.parent / "hf"
    size = Checkpoint.open(source).config.n_params * 4 / 1e6
    notice, report = errors.split("\n", 1)
    assert "time mixing is 24 wide and the model 16" in notice
    assert report == (
        f"{folder}: {size:,.1f} MB, float32; no tokenizer: none was found that fits a vocabulary of 33; give one with"
        " --tokenizer_file\n"
    )
    assert RWKV.from_pretrained(folder).fingerprint == Checkpoint.open(source).fingerprint()
    assert ("\n## Talk to it\n" in (folder / "README.md").read_text()) == ("--is_chat" in options)


def test_there_and_back_with_a_tokenizer_and_a_name(call, tmp_path):
    code, _, errors = call("convert", "--checkpoint_file", "tales", "--output_file", f"{tmp_path}/m.pth")
    assert (code, errors) == (0, f"{tmp_path}/m.pth: 7.8 MB, float16\n")
    arguments = ["--checkpoint_file", f"{tmp_path}/m.pth", "--output_dir", f"{tmp_path}/hf", "--dtype", "bf16"]
    code, _, errors = call("convert", *arguments, "--tokenizer_file", str(TALES_TOKENIZER), "--max-shard-size", "0.5MB")
    assert (code, errors) == (0, f"{tmp_path}/hf: 7.8 MB, bfloat16; tokenizer {TALES_TOKENIZER}\n")
    assert len([*(tmp_path / "hf").glob("model-*-of-*.safetensors")]) > 5
    model = RWKV.from_pretrained(tmp_path / "hf")
    assert model.tokenizer.encode("Once") == RWKV.from_pretrained("tales").tokenizer.encode("Once")
    assert Checkpoint.open(tmp_path / "hf").read("head.weight").dtype == torch.bfloat16


def test_a_file_of_a_repository(call, source, monkeypatch):
    asked = []

    def download(model, revision=None, token=None, offline=False):
        asked.append((model, revision, offline))
        return source

    monkeypatch.setattr(sys.modules["rwkv_engine.cli.convert"], "download", download)
    code, _, errors = run(
        call,
        "convert --repo_id owner/raw --checkpoint_file sub/m.pth --output_dir {folder}/hf --revision v1 --offline",
        source,
    )
    assert code == 0, errors
    assert asked == [("owner/raw/sub/m.pth", "v1", True)]
    assert RWKV.from_pretrained(source.parent / "hf")


@pytest.fixture
def uploads(monkeypatch):
    """What would be sent to the hub: names of files, and of the repository."""
    sent = []

    def upload(folder, repo_id, **options):
        if repo_id == "owner/refused":
            raise CheckpointError("owner/refused: no")
        sent.append((repo_id, sorted(p.name for p in folder.iterdir() if p.read_bytes())))
        return f"https://hub/{repo_id}"

    monkeypatch.setitem(sys.modules, "rwkv_engine.hub.upload", types.SimpleNamespace(upload=upload))
    return sent


def test_only_the_written_files_are_uploaded(call, source, uploads):
    folder = source.parent / "hf"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    command = "convert --checkpoint_file {source} --output_dir {folder}/hf --push_to_hub --model_name "
    code, _, errors = run(call, command + "owner/new", source)
    assert (code, errors.splitlines()[2:]) == (0, ["uploaded to https://hub/owner/new"])
    assert uploads == [("owner/new", ["README.md", "config.json", "generation_config.json", "model.safetensors"])]
    code, _, errors = run(call, command + "owner/refused", source)
    assert (code, len(errors.splitlines())) == (1, 3)
    assert errors.endswith(f"owner/refused: no; the converted model is whole in {folder}\n")
    assert RWKV.from_pretrained(folder)
    assert (folder / "diary.txt").exists()


MISTAKES = [  # options, exit code, what is said
    ("--checkpoint_file {source}", 2, "give --output-dir DIR for a Hugging Face directory, or --output-file FILE.pth"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --output_file {folder}/x.pth", 2, "give --output-dir DIR"),
    ("--repo_id owner/name --output_dir {folder}/hf", 2, "Missing option '--checkpoint-file'"),
    ("--output_dir {folder}/hf", 2, "Missing option '--checkpoint-file'"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --quantise", 2, "No such option"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --size 2B", 2, "'2B' is not one of 169M, 430M, 1B5, 3B, 7B"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --push_to_hub", 2, "go together"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --model_name a/b", 2, "go together"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --push_to_hub --model_name b", 2, "expected OWNER/NAME"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --push_to_hub --model_name a/b/c.pth", 2, "OWNER/NAME"),
    ("--checkpoint_file {source} --output_file {folder}/x.pth --is_chat", 2, "--is-chat goes with --output-dir only"),
    ("--checkpoint_file {source} --output_file {folder}/x.pth --max_shard_size 1GB", 2, "--max-shard-size goes with"),
    *[
        (f"--checkpoint_file {{source}} --output_dir {{folder}}/hf --max_shard_size {size}", 2, "a size such as 5GB")
        for size in ("5", "0GB", "-1GB", "many", "GB", "0.1")
    ],
    ("--checkpoint_file {source} --output_dir {folder}/hf --size 1b5", 1, "has 2 layers of width 16; expected 24 of"),
    ("--checkpoint_file {folder}/no.pth --output_dir {folder}/hf", 1, "no.pth: no such file or directory"),
    ("--checkpoint_file {folder} --output_dir {folder}/hf", 1, "expected model.safetensors or pytorch_model.bin"),
    ("--checkpoint_file {folder}/text --output_dir {folder}/hf", 1, "damaged, or not a checkpoint"),
    ("--checkpoint_file {source} --output_dir {folder}/text", 1, "text: is not a directory; nothing was written"),
    ("--checkpoint_file {source} --output_dir {folder}/text/hf", 1, "text/hf: cannot be written: Not a directory"),
    ("--checkpoint_file {source} --output_dir .", 1, "is the working directory or above it and cannot be replaced"),
    ("--checkpoint_file {source} --output_dir ..", 1, "is the working directory or above it and cannot be replaced"),
    ("--checkpoint_file {source} --output_dir /proc", 1, "/proc: is a mounted file system and cannot be replaced"),
    ("--checkpoint_file {source} --output_dir /proc/hf", 1, "/proc/hf: cannot be written: No such file or directory"),
    ("--checkpoint_file {source} --output_file {folder}/x.bin", 1, "x.bin: expected a name that ends in .pth"),
    (
        "--checkpoint_file {source} --output_file {folder}/d.pth",
        1,
        "d.pth: is a directory, not a regular file; nothing was written",
    ),
    ("--checkpoint_file {source} --output_file {folder}/no/x.pth", 1, "/no/x.pth: there is no folder "),
    ("--checkpoint_file {source} --output_dir {folder}/hf --tokenizer_file {tokenizer}", 1, "has 2048 tokens, the"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --tokenizer_file {folder}/no", 1, "/no: no such file"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --undo-rescale", 1, "needs a config.json with a rescale"),
    (
        "--repo_id owner --checkpoint_file m.pth --output_dir {folder}/hf",
        1,
        "owner/m.pth: not a hub id; expected owner/",
    ),
    (
        "--repo_id a/b --checkpoint_file m.txt --output_dir {folder}/hf",
        1,
        "a/b/m.txt: not a hub id; expected owner/name",
    ),
    ("--repo_id a/b --checkpoint_file m.pth --output_dir {folder}/hf --offline", 1, "not in the hub cache"),
    ("--checkpoint_file {source} --output_dir {folder}/hf --revision x", 1, "is on this machine; revision='x' can"),
]


@pytest.mark.parametrize(("options", "code", "message"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_users_mistake_is_an_error_and_leaves_nothing(options, code, message, call, source):
    (source.parent / "d.pth").mkdir()
    (source.parent / "text").write_text("text")
    (source.parent / "other.pth").write_text("so that the folder has two")
    before, here = names(source.parent), names(ROOT / "bench")
    got, text, errors = run(call, f"convert {options}", source)
    assert (got, text) == (code, ""), errors
    assert message in " ".join(errors.split())
    if code == 1:
        assert errors.startswith("rwkv-engine: error: ")
        assert len(errors.splitlines()) == 1, errors
    assert (names(source.parent), names(ROOT / "bench")) == (before, here)


def test_a_damaged_model_leaves_nothing(weights, call, tmp_path):
    head = weights["head.weight"].copy()
    head[2, 3] = float("nan")
    source = save_pth(weights | {"head.weight": head}, tmp_path / "m.pth")
    for output in ("--output_dir {folder}/hf", "--output_file {folder}/x.pth"):
        code, _, errors = run(call, f"convert --checkpoint_file {{source}} {output}", source)
        assert (code, len(errors.splitlines())) == (1, 1)
        assert "head.weight: 1 of 528 numbers are NaN or infinite" in errors
    assert list(tmp_path.iterdir()) == [source]


def test_a_folder_that_cannot_be_written_is_one_line(call, source, monkeypatch):
    """Whoever runs the tests may be allowed to write everywhere, so the system's refusal is made up."""

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    for output in ("--output_dir {folder}/hf", "--output_file {folder}/x.pth"):
        code, _, errors = run(call, f"convert --checkpoint_file {{source}} {output}", source)
        assert (code, len(errors.splitlines())) == (1, 1)
        assert re.search(r"/(hf|x.pth): cannot be written: Permission denied$", errors)
    assert list(source.parent.iterdir()) == [source]


INTERRUPTED = """
import os, resource, sys
from rwkv_engine import cli
from rwkv_engine.convert import source
real = source.Source.tensors
def until_half(self, progress=None):
    for i, pair in enumerate(real(self, progress)):
        if i == len(self.shapes) // 2:
            {event}
        yield pair
source.Source.tensors = until_half
sys.argv[:1] = ["rwkv-engine", "convert"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("output", ["--output_dir", "--output_file"])
@pytest.mark.parametrize(
    ("event", "code", "message"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGINT)})", 130, r"\n?"),
        (
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))",  # fails as a full disk does
            1,
            r"rwkv-engine: error: .*out\.pth: cannot be written: File too large\n",
        ),
    ],
    ids=["ctrl-c", "full disk"],
)
def test_the_old_output_stays_whatever_happens(event, code, message, output, source, run_python):
    """A directory may be called so too."""
    path = source.with_name("out.pth")
    if output == "--output_dir":
        path.mkdir()
    old = path / "model.safetensors" if path.is_dir() else path
    old.write_bytes(b"old")
    arguments = "--checkpoint_file", str(source), output, str(path)
    result = run_python(INTERRUPTED.format(event=event), *arguments)
    assert result.returncode == code, result.stderr
    assert re.fullmatch(message, result.stderr), result.stderr
    assert old.read_bytes() == b"old"
    assert {p for p in source.parent.rglob("*") if p.is_file()} == {source, old}
    assert sorted(source.parent.iterdir()) == sorted([source, path])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_bar_is_shown_at_a_terminal(source, run_python):
    code = (
        "import os, pty, sys\n"
        "sys.argv[:1] = ['rwkv-engine', 'convert']\n"
        "from rwkv_engine import cli\n"
        "pid, terminal = pty.fork()\n"
        "if pid == 0:\n"
        "    cli.main(); os._exit(0)\n"
        "seen = b''\n"
        "try:\n"
        "    while part := os.read(terminal, 4096): seen += part\n"
        "except OSError: pass\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), b'converting' in seen, b'100%' in seen)\n"
    )
    arguments = "--checkpoint_file", str(source), "--output_dir", str(source.with_name("hf"))
    result = run_python(code, *arguments, TERM="xterm", COLUMNS="100")
    assert result.stdout.split() == ["0", "True", "True"], result.stderr


def test_help_describes_every_option(call):
    code, text, _ = call("convert", "--help")
    assert code == 0
    for option in ("repo-id", "checkpoint-file", "output-dir", "output-file", "size", "push-to-hub", "undo-rescale"):
        assert f"--{option}" in text
