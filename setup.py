"""Builds the kernels ahead of time where torch is importable in the build environment; else first use does.

`pip install .` isolates the build and has no torch: a pure wheel that carries `csrc/`. `pip install
--no-build-isolation .` finds the torch that will run the kernels and compiles one library per instruction level.
"""

import importlib.util
import os
import shlex
import shutil
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent


def build_module():
    # Not `import rwkv_engine._build`: that would import the package, hence torch.
    spec = importlib.util.spec_from_file_location("_build", HERE / "rwkv_engine" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ahead_of_time():
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}
    if not shutil.which(shlex.split(os.environ.get("CXX", "c++"))[0]):
        return {}
    build = build_module()
    extensions = [
        CppExtension(
            name=f"rwkv_engine._prebuilt.{build.library_name(level)}",
            sources=[str(path.relative_to(HERE)) for path in build.sources()],
            include_dirs=[str(build.source_root())],
            extra_compile_args=build.compile_flags(level),
            extra_link_args=["-fopenmp"],
        )
        for level in build.LEVELS
    ]
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
    }


setup(**ahead_of_time())
