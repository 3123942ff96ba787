"""Finds what a build of the CUDA kernels needs, and says what to do if this machine lacks it.

`machine()` collects the facts about the machine, and all decisions are functions of them. At the top this file imports
only the standard library, because `setup.py` loads it by its path.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST = 75  # Turing: the oldest architecture that CUDA 13, and torch's builds for it, support
SYSTEM_TOOLKIT = Path("/usr/local/cuda")
NVCC_PLACES = "CUDA_HOME, on PATH, in /usr/local/cuda or in a Python package of NVIDIA's"  # where nvcc is looked for

# The names of architectures in TORCH_CUDA_ARCH_LIST, as in torch, of those on which the kernels run.
GENERATIONS = {
    "turing": (75,),
    "ampere": (80, 86),
    "ampere+tegra": (87,),
    "ada": (89,),
    "hopper": (90,),
    "blackwell": (100, 103, 120, 121),
    "blackwell+tegra": (101, 110),
}


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler."""

    path: Path
    root: Path  # its toolkit: bin, include, lib64
    version: str  # 13.0.88, or what it printed if that is no version
    architectures: tuple[int, ...]  # what it compiles for: 90 is sm_90

    @property
    def major(self) -> str:
        """The CUDA major version."""
        return self.version.partition(".")[0]

    def __str__(self) -> str:
        return f"nvcc {self.version} ({self.path})"


@dataclass(frozen=True)
class Machine:
    """The facts about a machine on which a build depends."""

    torch: str  # the version
    torch_cuda: str | None  # the CUDA version that torch is built for
    gpus: tuple[int, ...]  # architectures of the GPUs that torch sees, each once
    no_gpu: str  # why torch sees no GPU; empty if it sees one
    nvcc: Nvcc | None
    missing: tuple[str, ...]  # programs that are not on PATH


def machine() -> Machine:
    """The facts about this machine."""
    import torch

    problem = gpu_problem()
    gpus = () if problem else {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return Machine(
        torch.__version__,
        torch.version.cuda,
        tuple(sorted(10 * major + minor for major, minor in gpus)),
        problem,
        find_nvcc(),
        missing_programs(),
    )


def gpu_problem() -> str:
    """Why torch sees no GPU here; empty if it sees one."""
    import torch

    if torch.version.cuda is None and not torch.cuda.is_available():
        return _without_cuda(torch.__version__)
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return "" if torch.cuda.device_count() else "torch counts no devices; see CUDA_VISIBLE_DEVICES and nvidia-smi"


def _without_cuda(version: str) -> str:
    return f"torch {version} is built without CUDA; install a build with it (pytorch.org, Get started)"


def find_nvcc() -> Nvcc | None:
    """The first nvcc in CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda and NVIDIA's Python packages; None if none."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    chosen = [shutil.which("nvcc", path=str(Path(home, "bin"))) for home in homes]
    elsewhere = [SYSTEM_TOOLKIT / "bin", *packaged_toolkits()]
    found = [*chosen, shutil.which("nvcc"), *(shutil.which("nvcc", path=str(folder)) for folder in elsewhere)]
    path = next((path for path in found if path), None)
    return _describe(Path(path)) if path else None


def packaged_toolkits() -> list[Path]:
    """The folders in which pip installs nvcc: nvidia/cu13/bin, newest CUDA first; for CUDA 12 nvidia/cuda_nvcc/bin."""
    roots = [Path(folder, "nvidia") for folder in sys.path if folder]
    numbered = [path for root in roots for path in root.glob("cu[0-9]*/bin")]
    numbered.sort(key=lambda path: int(re.sub(r"\D", "", path.parent.name)), reverse=True)
    return [*numbered, *(path for root in roots for path in root.glob("cuda_nvcc/bin"))]


def _describe(path: Path) -> Nvcc:
    def ask(*arguments: str) -> str:
        try:
            result = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        return result.stdout + result.stderr

    banner = ask("--version")
    version = re.search(r"\bV(\d+\.\d+\.\d+)", banner)
    architectures = sorted({int(n) for n in re.findall(r"compute_(\d+)\b", ask("--list-gpu-arch"))})
    # If nvcc is a script or a link into the toolkit, only nvcc itself knows the toolkit's folder.
    top = re.search(r"^#\$ TOP=(.+)$", ask("--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull), re.MULTILINE)
    root = Path(top[1].strip()).resolve() if top else path.resolve().parent.parent
    return Nvcc(path, root, version[1] if version else banner.strip().partition("\n")[0], tuple(architectures))


def cxx_command() -> list[str]:
    """The C++ compiler and its first arguments, from CXX (such as "ccache g++"); c++ if CXX is unset or blank."""
    value = os.environ.get("CXX", "")
    try:
        return shlex.split(value) or ["c++"]
    except ValueError:  # an unclosed quotation mark; no program has this name, so a later message quotes it
        return [value]


def missing_programs() -> tuple[str, ...]:
    """The programs other than nvcc that a build needs and that are not on PATH or in Python's folder."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    # nvcc compiles host code with g++, or with CC, which torch's build passes to it.
    programs = [cxx_command()[0], os.environ.get("CC") or "g++", "ninja"]
    return tuple(program for program in programs if not shutil.which(program, path=path))


def why_not(machine: Machine, for_gpus: bool = True) -> str | None:
    """Why the kernels cannot be built, and what to do; None if they can be.

    Args:
        machine: the facts about the machine.
        for_gpus: whether the build is for the GPUs of this machine.
    """
    nvcc = machine.nvcc
    if machine.torch_cuda is None:
        return _without_cuda(machine.torch)
    if for_gpus and not machine.gpus:
        return f"torch sees no GPU: {machine.no_gpu}"
    if for_gpus and machine.gpus[0] < OLDEST:
        needs = f"a GPU here is sm_{machine.gpus[0]}, the kernels need sm_{OLDEST} (Turing) or newer"
        return f"{needs}; hide it with CUDA_VISIBLE_DEVICES if there is another, or run on the CPU"
    wanted = machine.torch_cuda.partition(".")[0]
    toolkit = f"install the CUDA {wanted} toolkit, or set CUDA_HOME to where it is"
    if nvcc is None:
        return f"no nvcc in {NVCC_PLACES}; {toolkit}"
    if not nvcc.architectures:
        return f"{nvcc.path} does not work, it says {nvcc.version!r}; {toolkit}"
    if nvcc.major != wanted:
        return f"{nvcc} is of CUDA {nvcc.major}, torch {machine.torch} of CUDA {machine.torch_cuda}; {toolkit}"
    for gpu in machine.gpus if for_gpus else ():
        if not architecture_for(gpu, nvcc):
            known = ", ".join(f"sm_{a}" for a in nvcc.architectures)
            return f"{nvcc} compiles for {known}, none of which runs on sm_{gpu}; install a CUDA toolkit that does"
    if machine.missing:
        return f"not on PATH: {', '.join(machine.missing)}; install a C++ compiler (g++) and ninja (pip install ninja)"
    return None


def architecture_for(gpu: int, nvcc: Nvcc) -> int | None:
    """The newest architecture that nvcc compiles for and whose machine code or PTX the GPU can run; None if none."""
    return max((a for a in nvcc.architectures if a <= gpu), default=None)


def chosen_architectures(nvcc: Nvcc, gpus: Sequence[int], wanted: str = "") -> tuple[list[int], list[str]]:
    """The architectures to build for, and those words of `wanted` that had to be left out.

    Args:
        nvcc: the compiler.
        gpus: the architectures of this machine's GPUs, which are the default, as far as nvcc supports them.
        wanted: as torch's TORCH_CUDA_ARCH_LIST: "8.0;9.0+PTX", names such as "Hopper", "All", or "Native" (the GPUs of
            this machine).
    """
    here = {a for a in (architecture_for(gpu, nvcc) for gpu in gpus) if a}
    chosen: set[int] = set()
    left_out = []
    for word in re.split(r"[;,\s]+", wanted.strip()) if wanted.strip() else []:
        name = word.lower().removesuffix("+ptx")
        number = re.fullmatch(r"(\d+)\.(\d)[af]?", name)
        if name in ("all", "common", "all-major"):
            asked = {a for a in nvcc.architectures if a >= OLDEST and (name != "all-major" or a % 10 == 0)}
        elif name == "native":
            asked = here
        elif number:
            asked = {10 * int(number[1]) + int(number[2])}
        else:
            asked = set(GENERATIONS.get(name, ()))
        possible = {a for a in asked if a >= OLDEST and a in nvcc.architectures}
        chosen |= possible
        if not possible:
            left_out.append(word)
    return sorted(chosen or here), left_out


def covers(architectures: Sequence[int], gpu: int) -> bool:
    """Whether a library with machine code for these architectures and PTX of the newest runs on a GPU.

    Machine code runs on GPUs of the same generation with the same or a newer minor version.
    """
    return gpu >= max(architectures) or any(a // 10 == gpu // 10 and a <= gpu for a in architectures)


def advice(log: str) -> str:
    """What to do about a failed build, given the compilers' output; empty if unknown."""
    if re.search(r"unsupported (GNU|clang) version", log):
        return "; this nvcc does not support so new a C++ compiler: install an older one and set CC=g++-13 CXX=g++-13"
    if "cannot find -lcudart" in log or re.search(r"cuda_runtime(_api)?\.h: No such file", log):
        return "; the CUDA toolkit is incomplete: install its headers and libcudart (cuda-cudart-dev)"
    if re.search(r"[Uu]nsupported gpu architecture", log):
        return "; this nvcc does not compile for this GPU: install another CUDA toolkit"
    return ""
