"""What stands in the way of a CUDA build is found from facts, so no GPU is needed to see it found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_nvcc import fake_nvcc, script

from rwkv_engine.native import toolkit
from rwkv_engine.native.toolkit import Machine, Nvcc, advice, chosen_architectures, covers, why_not

real_which = shutil.which
NVCC = Nvcc(Path("/cuda/bin/nvcc"), Path("/cuda"), "13.0.88", (75, 80, 86, 90, 100))
GOOD = Machine("2.11.0+cu130", "13.0", (90,), "", NVCC, ())
TOOLKIT = "install the CUDA 13 toolkit, or set CUDA_HOME to where it is"


def test_a_machine_that_has_everything():
    assert why_not(GOOD) is None
    for gpus in ((75,), (80, 90), (89,), (121,)):
        assert why_not(replace(GOOD, gpus=gpus)) is None
    assert why_not(replace(GOOD, torch_cuda="13.2")) is None, "one major version is one CUDA"
    assert why_not(replace(GOOD, gpus=()), for_gpus=False) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"torch": "2.11.0+cpu", "torch_cuda": None},
            "torch 2.11.0+cpu is built without CUDA; install a build with it (pytorch.org, Get started)",
        ),
        ({"gpus": (), "no_gpu": "no driver"}, "torch sees no GPU: no driver"),
        ({"gpus": (61, 90)}, "a GPU here is sm_61, the kernels need sm_75 (Turing) or newer; hide it with"),
        ({"nvcc": None}, f"no nvcc in {toolkit.NVCC_PLACES}; {TOOLKIT}"),
        (
            {"nvcc": replace(NVCC, version="exec format error", architectures=())},
            f"/cuda/bin/nvcc does not work, it says 'exec format error'; {TOOLKIT}",
        ),
        (
            {"nvcc": replace(NVCC, version="12.8.1")},
            f"nvcc 12.8.1 (/cuda/bin/nvcc) is of CUDA 12, torch 2.11.0+cu130 of CUDA 13.0; {TOOLKIT}",
        ),
        (
            {"nvcc": replace(NVCC, architectures=(90, 100)), "gpus": (80, 90)},
            "nvcc 13.0.88 (/cuda/bin/nvcc) compiles for sm_90, sm_100, none of which runs on sm_80; install",
        ),
        ({"missing": ("c++", "ninja")}, "not on PATH: c++, ninja; install a C++ compiler (g++) and ninja"),
    ],
)
def test_the_missing_thing_is_named_with_the_fix(change, expected):
    problem = why_not(replace(GOOD, **change))
    assert problem is not None
    assert problem.startswith(expected)
    assert "\n" not in problem


def test_a_library_runs_on_newer_gpus_of_a_generation_and_by_ptx_on_later_ones():
    assert covers([80, 90], 80)
    assert covers([80, 90], 89)
    assert covers([80, 90], 100), "the newest is there as PTX"
    assert not covers([80, 90], 75)
    assert not covers([75, 86, 90], 80), "machine code runs on newer minor versions only"
    assert toolkit.architecture_for(89, NVCC) == 86
    assert toolkit.architecture_for(121, NVCC) == 100
    assert toolkit.architecture_for(70, NVCC) is None


def test_architectures_to_build_for():
    assert chosen_architectures(NVCC, (80, 89, 86, 121)) == ([80, 86, 100], [])
    assert chosen_architectures(NVCC, ()) == ([], [])


@pytest.mark.parametrize(
    ("wanted", "chosen", "left_out"),
    [
        ("8.0;8.6 9.0+PTX", [80, 86, 90], []),
        ("7.0;8.0", [80], ["7.0"]),
        ("5.2 6.1", [90], ["5.2", "6.1"]),
        ("12.0+PTX, 7.5", [75], ["12.0+PTX"]),
        ("Hopper", [90], []),
        ("Volta;ampere", [80, 86], ["Volta"]),
        ("All", [75, 80, 86, 90, 100], []),
        ("native", [90], []),
        ("nonsense", [90], ["nonsense"]),
        (" ", [90], []),
    ],
)
def test_the_list_of_torch_is_followed_as_far_as_nvcc_goes(wanted, chosen, left_out):
    """A list made for another package ("7.0") must not break the installation."""
    assert chosen_architectures(NVCC, (90,), wanted) == (chosen, left_out)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("#error -- unsupported GNU version! gcc versions later than 15 are not supported!", "CC=g++-13"),
        ("#error -- unsupported clang version! ...", "CC=g++-13"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_75'", "another CUDA toolkit"),
        ("/usr/bin/ld: cannot find -lcudart: No such file or directory", "incomplete"),
        ("fatal error: cuda_runtime_api.h: No such file or directory", "incomplete"),
    ],
)
def test_a_failed_build_comes_with_advice(log, expected):
    assert expected in advice(f"[1/2] nvcc ...\n{log}\n")
    assert advice("x.cu(3): error: expected a ';'") == ""


def test_nvcc_is_found_and_asked(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = fake_nvcc(tmp_path / "a", "12.9.3", "90 75")
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    found = toolkit.find_nvcc()
    assert found == Nvcc(path, tmp_path / "a", "12.9.3", (75, 90))
    assert str(found) == f"nvcc 12.9.3 ({path})"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))
    assert toolkit.find_nvcc() == found, "an empty CUDA_HOME is passed over"
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "b").parent.parent))
    assert toolkit.find_nvcc().version == "13.0.88"


def test_nvcc_of_nvidias_python_packages_is_found(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolkit.sys, "path", ["", str(tmp_path / "site-packages")])
    monkeypatch.setattr(toolkit, "SYSTEM_TOOLKIT", tmp_path / "none")
    assert toolkit.find_nvcc() is None
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(toolkit.shutil, "which", lambda name, path=None: real_which(name, path=path or str(tmp_path)))
    nvidia = tmp_path / "site-packages" / "nvidia"
    for folder, version in (("cuda_nvcc", "12.8.1"), ("cu13", "13.0.88"), ("cu14", "14.0.1")):
        fake_nvcc(nvidia / folder, version)
        assert toolkit.find_nvcc().version == version


def test_the_toolkit_of_an_nvcc_that_is_a_script_elsewhere(tmp_path, monkeypatch):
    real = fake_nvcc(tmp_path / "toolkit")
    script(tmp_path / "links" / "bin" / "nvcc", f'exec {real} "$@"')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "links"))
    found = toolkit.find_nvcc()
    assert (found.path, found.root) == (tmp_path / "links" / "bin" / "nvcc", tmp_path / "toolkit")


def test_an_nvcc_that_does_not_work_is_quoted(tmp_path, monkeypatch):
    script(tmp_path / "bin" / "nvcc", "echo 'nvcc: no such device' >&2; exit 1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = toolkit.find_nvcc()
    assert found == Nvcc(tmp_path / "bin" / "nvcc", tmp_path, "nvcc: no such device", ())
    assert "says 'nvcc: no such device'" in why_not(replace(GOOD, nvcc=found))


def test_programs_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(toolkit.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert toolkit.missing_programs() == ("c++", "g++", "ninja")
    for name in ("c++", "g++"):
        script(tmp_path / "bin" / name, "true")
    assert toolkit.missing_programs() == ("ninja",)
    script(tmp_path / "ninja", "true")
    assert toolkit.missing_programs() == (), "ninja beside Python counts"
    monkeypatch.setenv("CXX", "ccache g++-13")
    monkeypatch.setenv("CC", "g++-13")
    assert toolkit.missing_programs() == ("ccache", "g++-13")


@pytest.mark.parametrize(
    ("failure", "count", "expected"),
    [
        (None, 1, ""),
        (None, 0, "torch counts no devices"),
        (RuntimeError("Found no NVIDIA driver on your system.\nPlease check ..."), 0, "Found no NVIDIA driver"),
    ],
)
def test_why_torch_sees_no_gpu(failure, count, expected, monkeypatch):
    def init():
        if failure:
            raise failure

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    problem = toolkit.gpu_problem()
    assert problem.startswith(expected)
    assert bool(problem) == bool(expected)
    assert "\n" not in problem


def test_the_facts_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path).parent.parent))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(9, 0), (8, 6), (9, 0)].__getitem__)
    machine = toolkit.machine()
    assert (machine.gpus, machine.torch_cuda, machine.nvcc.version) == ((86, 90), "13.0", "13.0.88")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert toolkit.machine().gpus == ()
    assert why_not(toolkit.machine()) == toolkit.machine().no_gpu
