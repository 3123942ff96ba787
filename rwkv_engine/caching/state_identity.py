"""What decides the bits of a state, beside the text."""

from __future__ import annotations

import hashlib
import platform

import torch

from rwkv_engine._version import __version__
from rwkv_engine.models import Model
from rwkv_engine.native import cpu_kernels, cuda_kernels, ways

# To be increased when the same kernels, weights and tokens give other states than before, or files have another form.
FORMAT = 1


def identity_of(model: Model) -> str:
    """16 hexadecimal digits that are equal only for models whose states after the same text have the same bits.

    They hash the kernels and the ways they compute in, the versions of torch and of this package, the devices, and all
    weights as they were placed, for a fingerprint does not tell how these were rounded. Weights are read at about a
    gigabyte per second.
    """
    kernels = cpu_kernels.status()
    facts = [FORMAT, __version__, torch.__version__, platform.machine(), model.fingerprint, model.config.identity()]
    facts += [kernels.path and kernels.path.name, ways.bfloat16_way(kernels.level), ways.int8_way(kernels.level)]
    facts += [torch.backends.cpu.get_cpu_capability()]  # torch itself computes the first LayerNorm
    if kernels.level is None:  # and then all products, in the order that suits the processor and its threads
        facts += [torch.get_num_threads(), *sorted(ways.processor_flags())]
    for device in sorted({*model.device_map.devices, model.device_map.home}, key=str):
        facts.append(str(device))
        if device.type == "cuda":
            library = cuda_kernels.status().path
            facts += [torch.cuda.get_device_name(device), library and library.name]
    digest = hashlib.blake2b(repr(facts).encode())
    streamed = model.streaming.weights if model.streaming else {}  # their modules' parameters are buffers
    for name, tensor in sorted({**model.state_dict(), **streamed}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
