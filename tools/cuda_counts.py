"""Counts what can be counted of the CUDA path without a GPU, beside its targets.

    pip install nvidia-cuda-nvdisasm      # if the CUDA toolkit has no nvdisasm
    python -m tools.cuda_counts

For each architecture that nvcc knows, ptxas tells the registers and spills of the kernels of decoding. In the machine
code for sm_90, with float16 weights and one row, it counts the loads that begin, while activations are prepared, before
the first is waited for. The kernels that a token launches beside the layers, those that `generate` adds to a captured
graph, and those of a chunk of a prompt in all, are the calls that reach torch's dispatcher on the CPU.
bench/gpu-predictions.md says what they lead us to expect.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from rwkv_engine import RWKV
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.models import Model
from rwkv_engine.native import build, toolkit
from tools import check_cuda, launches, sass

KERNELS = {"pass 1": ("time_mixing4_step", "gated_kernelINS_7Float16ELi1E", 20)}
KERNELS["pass 3"] = ("channel_mixing4_step", "inner_kernelINS_7Float16ELi1E", 20)
DECODING = ("linear", "norm_linear", "time_mixing4_step", "channel_mixing4_step")
DRAWS = {"greedy": (Draw(0.0), 3), "temperature": (Draw(1.0), 4), "top-p": (Draw(1.0, top_p=0.9), 8)}
PARAMS = {
    "greedy": SamplingParams(temperature=0),
    "top-p": SamplingParams(top_p=0.9, seed=1),
    "penalties": SamplingParams(presence_penalty=0.5, seed=1),
    "mask": SamplingParams(allowed_tokens=lambda _: np.full(2048 // 32, -1, dtype=np.int32), seed=1),
}
CHUNK, CHUNK_TARGET, LAYERS = 2048, 500, 24


def find_nvdisasm() -> str | None:
    """nvdisasm on PATH, in the toolkit or in a Python package of NVIDIA's."""
    nvcc = toolkit.find_nvcc()
    folders = [*([nvcc.root / "bin"] if nvcc else []), *toolkit.packaged_toolkits()]
    found = (shutil.which("nvdisasm", path=None if folder is None else str(folder)) for folder in (None, *folders))
    return next((path for path in found if path), None)


def compiled(nvcc: toolkit.Nvcc, name: str, architecture: int, target: Path) -> list[check_cuda.Use]:
    """Compiles a kernel's source to machine code of one architecture; returns what ptxas says."""
    source = build.source_root() / "kernels" / "cuda" / f"{name}.cu"
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    flags = [*build.NVCC_FLAGS, f"-I{build.source_root()}", code, "-Xptxas=-v", "-cubin"]
    output, succeeded = check_cuda.run([str(nvcc.path), *flags, "-o", str(target), str(source)])
    if not succeeded:
        raise SystemExit(f"{source} does not compile for sm_{architecture}:\n{output}")
    return check_cuda.uses(output)


def print_machine_code(nvcc: toolkit.Nvcc, architectures: list[int]) -> None:
    """Registers and spills of the kernels of decoding, and loads in flight."""
    nvdisasm = find_nvdisasm()
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures:
            uses = []
            for name in DECODING:
                target = Path(folder, f"{name}.{architecture}.cubin")
                uses += compiled(nvcc, name, architecture, target)
            most, spills = max(u.registers for u in uses), [u for u in uses if u.spills]
            print(f"sm_{architecture}: {len(uses)} kernels of decoding, at most {most} registers")
            print(f"  {'kernels with spills':<44}{len(spills):>8}   target 0", flush=True)
        for which, (name, kernel, target_loads) in KERNELS.items():
            cubin = Path(folder, f"{name}.90.cubin")
            if nvdisasm is None or not cubin.exists():
                print(f"loads in flight, {which}: no nvdisasm, or no machine code for sm_90")
                continue
            text = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
            [code] = [code for symbol, code in sass.functions(text).items() if kernel in symbol]
            print(f"{f'loads in flight, {which}':<46}{sass.loads_in_flight(code):>8}   target {target_loads}")


def print_launches(load: str) -> None:
    """Kernels of a token beside the layers, and of a chunk of a prompt with 24 layers."""
    model = RWKV.from_pretrained("tales", load).engine.model
    for name, (draw, target) in DRAWS.items():
        count = launches.beside_the_layers(model, draw)
        kernels = sum(n for operator, n in count.items() if operator != "copy_")  # of a few bytes from and to the host
        print(f"{f'kernels a token beside the layers, {name}':<46}{kernels:>8}   target {target}")
        print("  " + ", ".join(f"{n} {operator}" for operator, n in count.most_common()))


def print_around_a_replay(load: str) -> None:
    """Kernels and copies beside the captured graph, of one more token that `generate` writes."""
    model = RWKV.from_pretrained("tales", load).engine.model
    for name, params in PARAMS.items():
        count = launches.around_a_replay(model, params)
        print(f"{f'kernels and copies around a replay, {name}':<46}{sum(count.values()):>8}   target 0")
        print("  " + ", ".join(f"{n} {operator}" for operator, n in count.most_common()))


def print_chunk(load: str) -> None:
    """Kernels of a chunk of a prompt, of which those of the layers are multiplied."""
    model: Model = RWKV.from_pretrained("tales", load).engine.model
    per_chunk = launches.of_a_chunk(model, CHUNK, LAYERS)
    print(f"{f'kernels a chunk of {CHUNK}, {LAYERS} layers, {load}':<46}{per_chunk:>8}   target {CHUNK_TARGET}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default="75,80,90,100,120", help="such as 90,120; empty compiles nothing")
    args = parser.parse_args()
    wanted = [int(word) for word in args.architectures.split(",") if word]
    nvcc = toolkit.find_nvcc()
    if wanted and (nvcc is None or not nvcc.architectures):
        print(f"nothing is compiled: no nvcc in {toolkit.NVCC_PLACES}")
    elif nvcc:
        print_machine_code(nvcc, [a for a in wanted if a in nvcc.architectures])
    print_launches("cpu fp16")
    print_around_a_replay("cpu fp16")
    for format_name in ("bf16", "fp16"):
        print_chunk(f"cpu {format_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
