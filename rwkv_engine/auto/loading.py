"""Converts the options of transformers' `from_pretrained` to a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import Strategy
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.core.strategy_grammar import Segment, is_device
from rwkv_engine.errors import RequestError, StrategyError

DType = str | torch.dtype | None
DeviceMap = str | int | torch.device | Mapping[str, Any] | None

_NAMES = {  # the precisions by all names that people use
    **{name: name for name in DTYPES},
    **{word_of(dtype): name for name, dtype in DTYPES.items()},
    "float": "fp32",
    "half": "fp16",
}
_AUTO = ("auto", "balanced", "balanced_low_0", "sequential")
# Options of transformers that have no effect here; any value is accepted.
HARMLESS = (
    "attn_implementation",  # there is no attention
    "low_cpu_mem_usage",  # memory use is always low
    "offload_folder",
    "offload_state_dict",
    "rescale_every",  # hidden states are float32 and never rescaled
    "trust_remote_code",  # code that comes with a model is never run
    "use_safetensors",  # both formats are read, and neither can run code
)
# Options of transformers that are not supported, with the reason or an alternative.
REFUSED = {
    "adapter_kwargs": "adapters are not supported",
    "cache_dir": "the environment variable HF_HOME says where the hub cache is",
    "config": "the sizes of a model are read from its tensors",
    "force_download": "delete the model from the hub cache instead: hf cache delete",
    "gguf_file": "GGUF is not supported; use the .pth or Hugging Face files that it was made from",
    "max_memory": "give the layers of each device instead: strategy='cuda fp16 *10 -> cpu fp32'",
    "quantization_config": "use load_in_8bit=True or load_in_4bit=True, or strategy='cuda fp16i8'",
    "state_dict": "call model.load_state_dict instead",
    "subfolder": "give the path of the file: owner/name/FOLDER/FILE.pth",
    "use_auth_token": "pass token instead",
    "variant": "name the file: owner/name/FILE.pth",
}


def check_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuses options that are unknown, or that would change something and are not supported.

    Raises:
        RequestError: names the first such option, with the reason or with the options that are known.
    """
    for name, value in options.items():
        if name in HARMLESS or (name in REFUSED and (value is None or value is False)):
            continue
        if name in REFUSED:
            raise RequestError(f"from_pretrained: {name}={value!r} is not supported: {REFUSED[name]}")
        expected = ", ".join(known)
        raise RequestError(
            f"from_pretrained: unknown option {name!r}, expected {expected}; without effect: {', '.join(HARMLESS)}"
        )


def strategy_for(
    checkpoint: Checkpoint,
    strategy: str | None,
    dtype: DType,
    torch_dtype: DType,
    device_map: DeviceMap,
    load_in_8bit: bool,
    load_in_4bit: bool,
) -> Strategy:
    """The strategy that the options of `from_pretrained` describe, with every layer assigned.

    Args:
        checkpoint: gives the dtype that "auto" means, and the sizes that decide what fits on which device.
        strategy: a strategy string, in place of all other options.
        dtype, torch_dtype: two names of one option; None is float32.
        device_map: the device or devices; None is the CPU.
        load_in_8bit, load_in_4bit: store matrices in int8, or in int4.

    Raises:
        StrategyError: a precision or device is not available, or two options contradict each other.
    """
    if torch_dtype is not None and dtype is not None and _precision(dtype) != _precision(torch_dtype):
        raise StrategyError(f"dtype={dtype} and torch_dtype={torch_dtype} contradict each other; pass only dtype")
    dtype = dtype if dtype is not None else torch_dtype
    if strategy is not None:
        of_weights = {"load_in_8bit": load_in_8bit or None, "load_in_4bit": load_in_4bit or None}
        given = {"dtype": dtype, "device_map": device_map, **of_weights}
        if also := [name for name, value in given.items() if value is not None]:
            raise StrategyError(f"strategy={strategy!r} already sets {also[0]}; leave {also[0]} out")
        parsed = Strategy.parse(strategy)
        parsed.check_runnable()
        return parsed.resolve(checkpoint.config)
    if load_in_8bit and load_in_4bit:
        raise StrategyError("load_in_8bit and load_in_4bit contradict each other; pass one of them")
    weights = "i8" if load_in_8bit else "i4" if load_in_4bit else None
    device = _device(device_map)
    precision = None if dtype is None else _precision(dtype)
    if precision == "auto":
        precision = _stored_precision(checkpoint)
        weights = weights or (checkpoint.packing.quantised if checkpoint.packing else None)
    if device == "auto":
        chosen = Strategy.parse("auto").resolve(checkpoint.config, precision)
    else:
        chosen = Strategy.of([Segment(device, precision or "fp32")])
    if weights:
        chosen = chosen.with_weights(weights)
    try:
        chosen.check_runnable()
    except StrategyError as error:
        reason = str(error).splitlines()[0].removeprefix("strategy: ")
        raise StrategyError(f"device_map={device_map!r}: {reason}") from error
    return chosen


def _precision(dtype: str | torch.dtype) -> str:
    """The name of a precision in strategies, or "auto"."""
    name = word_of(dtype)
    if name == "auto":
        return name
    if name not in _NAMES:
        raise StrategyError(f"dtype: got {dtype}, expected auto, float32, float16 or bfloat16")
    return _NAMES[name]


def _stored_precision(checkpoint: Checkpoint) -> str:
    """The precision of the embedding in the file, which is never quantised."""
    stored = checkpoint.read("emb.weight").dtype
    return next((name for name, dtype in DTYPES.items() if dtype == stored), "fp32")


def _device(device_map: DeviceMap) -> str:
    """The name of a device in strategies, or "auto"."""
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise StrategyError(
                "device_map: modules cannot be placed one by one; pass {'': device} for all, or give the layers of"
                " each device: strategy='cuda:0 fp16 *10 -> cuda:1 fp16'"
            )
        return _device(device_map[""])
    if device_map is None:
        return "cpu"
    is_index = isinstance(device_map, int) and not isinstance(device_map, bool)
    name = f"cuda:{device_map}" if is_index else str(device_map)
    if name in _AUTO:
        return "auto"
    if not is_device(name):
        raise StrategyError(
            f"device_map: got {device_map!r}, expected auto, cpu, cuda, cuda:N, N or {{'': one of these}}"
        )
    return name
