"""Builds the kernels ahead of time where torch is importable in the build environment; else first use does.

`pip install .` isolates the build and has no torch: a pure wheel that carries `csrc/`. `pip install
--no-build-isolation .` finds the torch that will run the kernels and compiles one library per instruction level, and
one for the GPUs here (or those of TORCH_CUDA_ARCH_LIST) where torch is built for CUDA and nvcc is installed.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent


def module(name):
    # Not `import rwkv_engine.NAME`: that would import the package, and with it all that it depends on.
    spec = importlib.util.spec_from_file_location(f"rwkv_engine_{name}", HERE / "rwkv_engine" / "native" / f"{name}.py")
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def relative(paths):
    return [str(path.relative_to(HERE)) for path in paths]


def cuda_extensions(build):
    from torch.utils import cpp_extension

    toolkit = module("toolkit")
    machine = toolkit.machine()
    problem = toolkit.why_not(machine, for_gpus=bool(machine.gpus))
    if problem:
        print(f"rwkv_engine: no CUDA kernels ahead of time: {problem}")
        return []
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    architectures, left_out = toolkit.chosen_architectures(machine.nvcc, machine.gpus, wanted)
    if left_out:
        print(f"rwkv_engine: of TORCH_CUDA_ARCH_LIST left out, unknown to {machine.nvcc}: {' '.join(left_out)}")
    architectures = architectures or [a for a in build.ARCHITECTURES if a in machine.nvcc.architectures]
    if not architectures:
        print(f"rwkv_engine: no CUDA kernels ahead of time: {machine.nvcc} compiles for none of {build.ARCHITECTURES}")
        return []
    cpp_extension.CUDA_HOME = str(machine.nvcc.root)
    return [
        cpp_extension.CUDAExtension(
            name=f"rwkv_engine._prebuilt.{build.cuda_library_name(architectures)}",
            sources=relative(build.cuda_sources()),
            include_dirs=[str(build.source_root())],
            extra_compile_args={
                "cxx": list(build.CUDA_BINDING_FLAGS),
                "nvcc": build.nvcc_flags(architectures),
            },
        )
    ]


def ahead_of_time():
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}
    if not os.environ.get("CXX", "").strip():
        os.environ.pop("CXX", None)  # setuptools would run a program without a name
    if not shutil.which(module("toolkit").cxx_command()[0]):
        return {}
    build = module("build")
    extensions = [
        CppExtension(
            name=f"rwkv_engine._prebuilt.{build.library_name(level)}",
            sources=relative(build.sources()),
            include_dirs=[str(build.source_root())],
            extra_compile_args=build.compile_flags(level),
            extra_link_args=["-fopenmp"],
        )
        for level in build.LEVELS
    ]
    return {
        "ext_modules": extensions + cuda_extensions(build),
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
    }


setup(**ahead_of_time())
