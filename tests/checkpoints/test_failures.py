"""Too little memory and an interrupt from the keyboard are reported as what they are, not as damage."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
import torch
from checkpoint_files import save_pth, save_safetensors

from rwkv_engine import Checkpoint, CheckpointError, RwkvError, Strategy
from rwkv_engine.checkpoints import memory
from rwkv_engine.checkpoints.failures import damage_reported, interrupts_kept
from rwkv_engine.checkpoints.memory import memory_errors_explained
from rwkv_engine.convert import to_hugging_face, to_pth
from rwkv_engine.convert.pack import pack, quantize
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.errors import OutOfMemoryError
from rwkv_engine.locate import EMBEDDED

# Loads a file with so much less address space than it needs, in a process that has loaded all code before.
LIMITED = """
import resource, sys
from rwkv_engine import Checkpoint, Strategy
from rwkv_engine.core.main_memory import free_main_memory
from rwkv_engine.runtime import load_model
path, when, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
def limit():
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
load_model(Checkpoint.open("rwkv_engine/assets/tales"), Strategy.parse("cpu fp32"))
if when == "opening":
    limit()
checkpoint = Checkpoint.open(path)
checkpoint.fingerprint()
if when == "loading":
    limit()
try:
    load_model(checkpoint, Strategy.parse(sys.argv[4]))
    print("loaded")
except MemoryError:
    print("MemoryError")
"""

BIG = Rwkv4Config(n_layer=1, n_embd=256, n_att=256, n_ffn=256, n_vocab=60_000)  # 123 MB in float32


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A model of 62 MB in bfloat16, as a `.pth`, a legacy one and a `.safetensors`."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("big")
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in BIG.tensor_shapes().items()}
    torch.save(tensors, folder / "m.pth")
    torch.save(tensors, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "m.safetensors")
    return folder


def run(run_python, *arguments):
    result = run_python(LIMITED, *map(str, arguments), OMP_NUM_THREADS="1")
    return result.stdout.strip(), (result.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits address space so")
@pytest.mark.parametrize("name", ["m.pth", "legacy.pth", "m.safetensors"])
def test_too_little_memory_to_open_a_file_is_not_damage(name, big, run_python):
    output, error = run(run_python, big / name, "opening", 30_000_000, "cpu fp32")
    assert output == ""
    assert error.startswith(
        f"rwkv_engine.errors.OutOfMemoryError: {big / name}: not enough memory to open it: it needs"
    )
    assert "GB are free; raise this process's limit (ulimit -v), or close other programs" in error


@pytest.mark.parametrize("write", [pack, quantize])
def test_too_little_memory_to_pack_is_reported(write, tmp_path, monkeypatch):
    def no_memory(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 154450944 bytes")

    monkeypatch.setattr(f"{pack.__module__}.converted", no_memory)
    with pytest.raises(OutOfMemoryError, match="tales: not enough memory to convert it"):
        write(EMBEDDED["tales"], tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits address space so")
@pytest.mark.parametrize("name", ["m.pth", "legacy.pth", "m.safetensors"])
def test_too_little_memory_for_a_strategy_names_one_that_fits(name, big, run_python):
    output, error = run(run_python, big / name, "loading", 105_000_000, "cpu fp32")
    assert output == ""
    assert error.startswith(f"rwkv_engine.errors.OutOfMemoryError: {big / name}: not enough memory to load it")
    assert "with strategy 'cpu fp32', which needs 0.12 GB on cpu (0.1" in error
    assert "strategy 'cpu bf16' would fit (0.06 GB)" in error
    assert run(run_python, big / name, "loading", 105_000_000, "cpu bf16") == ("loaded", "")


def loading_fails(error, tmp_path, weights, monkeypatch, free, strategy="cpu fp32"):
    """The message when `error` is raised while loading with so many bytes free."""
    monkeypatch.setattr(memory, "free_memory", lambda device: free)

    @memory_errors_explained
    def load(checkpoint, strategy):
        raise error

    with pytest.raises(OutOfMemoryError) as caught:
        load(Checkpoint.open(save_pth(weights, tmp_path / "m.pth")), Strategy.parse(strategy))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("unable to mmap 338945707 bytes from file <M.pth>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    ],
    ids=repr,
)
def test_every_kind_of_memory_error_is_recognised(error, tmp_path, weights, monkeypatch):
    assert "not enough memory to load" in loading_fails(error, tmp_path, weights, monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError, match="not enough memory to open"), damage_reported(tmp_path / "m.pth"):
        raise error


def test_the_most_exact_strategy_that_fits_is_named(tmp_path, weights, monkeypatch):
    config = Checkpoint.open(save_pth(weights, tmp_path / "m.pth")).config
    for text in ("cpu bf16", "cpu fp32i8", "cpu bf16i8"):
        [size] = Strategy.parse(text).nbytes(config).values()
        message = loading_fails(MemoryError(), tmp_path, weights, monkeypatch, int(size * 1.11))
        assert f"strategy '{text}' would fit" in message
    message = loading_fails(MemoryError(), tmp_path, weights, monkeypatch, 100)
    assert "no strategy would fit; close other programs, or choose a smaller model" in message


def test_bytes_of_a_strategy_are_counted_on_each_device(weights, tmp_path):
    config = Checkpoint.open(save_pth(weights, tmp_path / "m.pth")).config
    whole = Strategy.parse("cpu fp32").nbytes(config)
    assert whole == {"cpu": 4 * config.n_params}
    parts = Strategy.parse("cuda fp32 *1 -> cpu fp32").nbytes(config)
    assert set(parts) == {"cuda", "cpu"}
    assert sum(parts.values()) == whole["cpu"]


@pytest.mark.parametrize("convert", [to_pth, to_hugging_face])
def test_too_little_memory_to_convert_leaves_what_was_there(convert, source, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 154450944 bytes")

    monkeypatch.setattr("rwkv_engine.convert.source.check_finite", fail)
    with pytest.raises(OutOfMemoryError, match="not enough memory to convert it"):
        convert(source, tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == [source]


def test_other_errors_while_loading_stay_what_they_are(source):
    @memory_errors_explained
    def load(checkpoint, strategy):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else") as caught:
        load(Checkpoint.open(source), Strategy.parse("cpu fp32"))
    assert not isinstance(caught.value, RwkvError)


def interrupt_becomes(error):
    """Ctrl-C in the middle of C code that takes it for the failure of what it looks at."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    if error:
        raise error


@pytest.mark.parametrize("error", [ValueError("could not determine the shape"), CheckpointError("x"), None], ids=repr)
def test_an_interrupt_that_became_another_error_is_an_interrupt(error, tmp_path):
    with pytest.raises(KeyboardInterrupt), damage_reported(tmp_path):
        interrupt_becomes(error)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_raises_nothing_is_called_normally(tmp_path):
    calls = []
    before = signal.signal(signal.SIGINT, lambda *arguments: calls.append(1))
    try:
        with interrupts_kept():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(CheckpointError, match="damaged"), damage_reported(tmp_path):
            interrupt_becomes(ValueError("real damage"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [1, 1]


@pytest.mark.slow
def test_interrupts_while_a_safetensors_file_is_read(weights, tmp_path):
    """Every interrupt at a random moment is a KeyboardInterrupt; without care most of them are ValueErrors of torch."""
    program = """
        import collections, random, signal, sys
        from rwkv_engine import Checkpoint
        seen = collections.Counter()
        signal.signal(signal.SIGALRM, lambda *arguments: signal.raise_signal(signal.SIGINT))
        checkpoint = Checkpoint.open(sys.argv[1])
        rng = random.Random(0)
        while seen["KeyboardInterrupt"] < 200 and sum(seen.values()) < 5000:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-3 * rng.random())
                while True:
                    for name in checkpoint.names:
                        checkpoint.read(name)
            except BaseException as error:
                seen[type(error).__name__] += 1
        print(dict(seen))
    """
    path = save_safetensors(weights, tmp_path / "m.safetensors")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.stdout == "{'KeyboardInterrupt': 200}\n", result.stderr
