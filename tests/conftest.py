from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# Before torch is imported. Threads that wait for each other must not spin: where other processes, such as further test
# workers or the programs that tests start, need the cores, small models would be a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import oracle
import oracle7
import pytest
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine.notices import show_notices

ROOT = Path(__file__).resolve().parent.parent

# Shells start background jobs with Ctrl-C ignored, which the programs that tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


show_notices()  # as the command line does, so that tests read notices from standard error


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        type=Path,
        help="folder with fairy_tales_train.txt, fairy_tales_valid.txt and 20B_tokenizer.json; without it, what needs"
        " them is skipped",
    )
    parser.addoption(
        "--card",
        type=Path,
        help="the model card of RWKV-4 Raven 1B5, whose snippets are run; without it they are skipped",
    )


# Where tests marked gpu run. With `cpu` those that can run there do, which tests the tests.
DEVICE = os.environ.get("RWKV_TEST_DEVICE", "cuda")


def require_gpu() -> None:
    """Skips a module, with the reason, where there is no GPU; loads the kernels where there is one."""
    from rwkv_engine.native import cuda_kernels, toolkit

    if not DEVICE.startswith("cuda"):
        return
    problem = toolkit.gpu_problem()
    if problem:
        pytest.skip(f"needs a GPU: {problem}", allow_module_level=True)
    cuda_kernels.status()


@pytest.fixture
def gpu() -> str:
    """The device of the tests marked gpu."""
    return DEVICE


@pytest.fixture
def cuda() -> str:
    """The same where nothing else will do."""
    if not DEVICE.startswith("cuda"):
        pytest.skip("needs a GPU: RWKV_TEST_DEVICE says otherwise")
    return DEVICE


@pytest.fixture
def data(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--data")
    if folder is None:
        pytest.skip("needs the corpus and the 20B tokenizer: give their folder with --data")
    assert (folder / "fairy_tales_valid.txt").is_file(), f"{folder} holds no fairy_tales_valid.txt"
    return folder.resolve()


@pytest.fixture
def card(request: pytest.FixtureRequest) -> Path:
    card = request.config.getoption("--card")
    if card is None:
        pytest.skip("needs the model card of RWKV-4 Raven 1B5: give it with --card FILE")
    return card.resolve()


@pytest.fixture
def run_python():
    """Runs a Python program in a process of its own: `run(code, NAME=value)`; environment variables by name."""

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
            timeout=300,
            check=False,
        )

    return run


def copy_tree(to: Path) -> Path:
    """The tree as git would clone it with the changes made so far."""
    ignore = shutil.ignore_patterns(
        ".git", "*.egg-info", "build", "dist", "__pycache__", ".venv", "*.so", ".*_cache", "_prebuilt"
    )
    return Path(shutil.copytree(ROOT, to, ignore=ignore))


@pytest.fixture(scope="session")
def few_sources(tmp_path_factory) -> Path:
    """The tree with the sources of two kernels alone, one of each kind of binding, and two instruction levels, for
    tests of how libraries come to be: that all of them compile is seen elsewhere, and here would take minutes."""
    from rwkv_engine.native import cpu_kernels

    tree = copy_tree(tmp_path_factory.mktemp("few") / "rwkv_engine")
    for source in (tree / "csrc" / "kernels").rglob("*.cpp"):
        if source.stem not in ("wkv4", "byte_trie"):
            source.unlink()
    (tree / "csrc" / "bindings" / "cpu.cpp").write_text(
        '#include "bindings/ways_cpu.h"\n#include "bindings/wkv4_cpu.h"\n'
    )
    with open(tree / "rwkv_engine" / "native" / "build.py", "a") as file:
        kept = {cpu_kernels.processor_level(), "portable"}
        file.write(f"\nLEVELS = {{level: flags for level, flags in LEVELS.items() if level in {kept}}}\n")
    return tree


@pytest.fixture(scope="session")
def tales():
    from rwkv_engine import RWKV

    return RWKV.from_pretrained("tales")


# Random weights of each RWKV version, for tests of what does not depend on the version.
SMALL = {4: Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33), 7: oracle7.Shape(2, 2, 16, 40, 33)}


@pytest.fixture(scope="session", params=SMALL, ids=lambda version: f"rwkv{version}")
def each_version(request, tmp_path_factory) -> Path:
    """A small checkpoint of each RWKV version, with a vocabulary of 33."""
    weights = {4: oracle, 7: oracle7}[request.param].random_weights(SMALL[request.param])
    return save_pth(weights, tmp_path_factory.mktemp("version") / "m.pth")


@pytest.fixture(scope="session", params=[4, 7], ids=lambda version: f"rwkv{version}")
def talker(request, tales, tmp_path_factory):
    """A model of each RWKV version with the vocabulary of `tales`: that model, and a small one with random weights."""
    from rwkv_engine import RWKV

    if request.param == 4:
        return tales
    weights = oracle7.random_weights(oracle7.Shape(2, 2, 32, 100, tales.config.n_vocab))
    path = save_pth(weights, tmp_path_factory.mktemp("talker") / "m.pth")
    return RWKV.from_pretrained(path, tokenizer=tales.tokenizer.name)


@pytest.fixture(scope="session")
def service(tales):
    """A server's state with that model; see `served`."""
    import served

    return served.begun(tales)


@pytest.fixture
def client(service):
    """Calls its application; afterwards all its slots must be free."""
    import served

    yield served.Client(service)
    served.wait_until(lambda: served.is_idle(service))


@pytest.fixture
def call(monkeypatch, capfd):
    """The command line in this process: `call(*arguments)` gives exit code, standard output and standard error.

    `stdin` are the bytes in a pipe that is its standard input, if not that of the tests.
    """

    from rwkv_engine.cli import main

    def call(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rwkv-engine", *arguments])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        monkeypatch.chdir(ROOT)
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="session")
def shape() -> Shape:
    """That of a small model whose sizes all differ."""
    return Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)


@pytest.fixture(scope="session")
def weights(shape):
    """Those of a model of that shape; not to be changed."""
    return oracle.random_weights(shape)


@pytest.fixture
def source(weights, tmp_path) -> Path:
    """A checkpoint of them, alone in its folder."""
    return save_pth(weights, tmp_path / "m.pth")


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of this process, as if the machine had four CPUs."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or a token would be written to the home directory
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray.init(address="local", num_cpus=4, object_store_memory=100 * 2**20, **options)
        yield
        ray.shutdown()
