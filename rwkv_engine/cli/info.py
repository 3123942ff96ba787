"""`rwkv-engine info`."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from pathlib import Path

import click
import torch

from rwkv_engine._version import __version__
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.cli.options import hub_options
from rwkv_engine.core import Strategy
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.core.streaming import bus_text
from rwkv_engine.core.streaming_offer import streaming_offer
from rwkv_engine.errors import TokenizerError
from rwkv_engine.native import cpu_kernels, cuda_kernels, toolkit, ways
from rwkv_engine.pipeline import EMBEDDED, locate
from rwkv_engine.text import find_tokenizer

KERNELS = {"prebuilt": "compiled", "jit": "compiled", "reference": "none: plain torch, slower"}


@click.command()
@click.argument("model", required=False)
@click.option(
    "--strategy", default="cpu fp32", show_default=True, help="With MODEL: show where this strategy places each layer."
)
@hub_options
def info(model: str | None, strategy: str, revision: str | None, offline: bool) -> None:
    """Shows the versions, kernels, threads and GPUs of this installation; with MODEL, that model and its placement.

    MODEL is tales, a path or a hub id, which is downloaded. The weights are not loaded.
    """
    rows = _model_rows(locate(model, revision, offline=offline), strategy) if model else _machine_rows()
    for name, value in rows:
        click.echo(f"{name:<16} {value}")


def _machine_rows() -> list[tuple[str, str]]:
    status = cpu_kernels.status()
    return [
        ("rwkv_engine", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("kernels", _kernels(status)),
        ("bf16 products", f"{ways.bfloat16_way(status.level)}, where a prompt is read"),
        ("int8 products", f"{ways.int8_way(status.level)}, where a prompt is read"),
        ("why", status.reason),
        ("library", str(status.path or "-")),
        ("processor", f"{platform.machine()}, runs kernels up to {cpu_kernels.processor_level()}"),
        ("threads", f"{torch.get_num_threads()}, {', '.join(cpu_kernels.openmp_runtimes()) or 'no OpenMP runtime'}"),
        *_gpu_rows(),
        (
            "strategies",
            "cpu, cuda or cuda:N with fp32, bf16 or fp16, each also with i8 or i4; several joined by ->; auto",
        ),
        ("models", ", ".join(EMBEDDED)),
    ]


def _gpu_rows() -> list[tuple[str, str]]:
    problem = toolkit.gpu_problem()
    if problem:
        return [("gpu", f"none that torch can use: {problem}")]
    gpus = []
    for i in range(torch.cuda.device_count()):
        free, total = (f"{n / 1e9:,.1f} GB" for n in torch.cuda.mem_get_info(i))
        major, minor = torch.cuda.get_device_capability(i)
        name = torch.cuda.get_device_name(i)
        gpus.append(("gpu", f"cuda:{i}, {name}, sm_{major}{minor}, {total} of memory, {free} free"))
    status = cuda_kernels.status()
    return [
        *gpus,
        ("driver", _driver()),
        ("cuda toolkit", str(toolkit.find_nvcc() or "no nvcc found")),
        ("torch's cuda", torch.version.cuda or "none"),
        ("cuda kernels", _kernels(status)),
        ("cuda why", status.reason),
        ("cuda library", str(status.path or "-")),
    ]


def _kernels(status: cpu_kernels.Status) -> str:
    return ", ".join(filter(None, (KERNELS[status.kind], status.level)))


def _driver() -> str:
    with suppress(OSError):
        version = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
        if version:
            return version[0]
    return "unknown; nvidia-smi may tell"


def _model_rows(path: Path, strategy: str) -> list[tuple[str, str]]:
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    chosen = Strategy.parse(strategy)
    streamed = chosen.streamed_nbytes(config)
    offer = None if chosen.segments else streaming_offer(config)  # for `auto`
    return [
        ("model", str(path)),
        ("version", f"RWKV-{config.version}"),
        ("parameters", f"{config.n_params:,}"),
        ("layers", str(config.n_layer)),
        ("width", config.widths),
        ("vocabulary", str(config.n_vocab)),
        ("tokenizer", _tokenizer_name(path, config.n_vocab)),
        ("stored as", _precision(checkpoint)),
        ("fingerprint", checkpoint.fingerprint()),
        *[
            (f"layers {layers}", f"{device}, {precision}, {size} of weights; free memory {free}")
            for layers, device, precision, size, free in chosen.explain(config)
        ],
        *([("streamed", bus_text(streamed))] if streamed else []),
        *([("or streamed", f"{offer}, {bus_text(offer.streamed_nbytes(config))}")] if offer else []),
    ]


def _precision(checkpoint: Checkpoint) -> str:
    if checkpoint.packing:
        return f"packed, {checkpoint.packing}"
    return word_of(checkpoint.read("head.weight").dtype)


def _tokenizer_name(model: Path, n_vocab: int) -> str:
    try:
        tokenizer = find_tokenizer(model, n_vocab)
    except TokenizerError as error:
        return f"none: {error}"
    return tokenizer.name if tokenizer else "none found; give one with --tokenizer FILE when you run the model"
