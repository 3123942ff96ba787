"""`rwkv-engine info`."""

from __future__ import annotations

import platform
from pathlib import Path

import click
import torch

from rwkv_engine._version import __version__
from rwkv_engine.core import Checkpoint, Strategy
from rwkv_engine.ops import _extension
from rwkv_engine.pipeline import EMBEDDED, locate
from rwkv_engine.text import find_tokenizer


@click.command()
@click.argument("model", required=False)
@click.option("--strategy", default="cpu fp32", show_default=True, help="With MODEL: show what goes where.")
@click.option("--revision", help="Of a hub id: branch, tag or commit.")
@click.option("--offline", is_flag=True, help="Take a hub id from the hub cache, ask no server.")
def info(model: str | None, strategy: str, revision: str | None, offline: bool) -> None:
    """Tells what is in use here and why; with MODEL, what that model is and where its layers go.

    Loads nothing, but downloads what a hub id names.
    """
    rows = _model_rows(locate(model, revision, offline=offline), strategy) if model else _machine_rows()
    for name, value in rows:
        click.echo(f"{name:<16} {value}")


def _machine_rows() -> list[tuple[str, str]]:
    status = _extension.status()
    kernels = {"prebuilt": "compiled", "jit": "compiled", "reference": "none: plain torch, slower"}[status.kind]
    return [
        ("rwkv_engine", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("kernels", f"{kernels}, {status.level}" if status.level else kernels),
        ("why", status.reason),
        ("library", str(status.path or "-")),
        ("processor", f"{platform.machine()}, runs kernels up to {_extension.processor_level()}"),
        ("threads", f"{torch.get_num_threads()}, {', '.join(_extension.openmp_runtimes()) or 'no OpenMP runtime'}"),
        ("strategies", "cpu fp32"),
        ("models", ", ".join(EMBEDDED)),
    ]


def _model_rows(path: Path, strategy: str) -> list[tuple[str, str]]:
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    tokenizer = find_tokenizer(path, config.n_vocab)
    return [
        ("model", str(path)),
        ("version", f"RWKV-{config.version}"),
        ("parameters", f"{config.n_params:,}"),
        ("layers", str(config.n_layer)),
        ("width", f"{config.n_embd} (time mixing {config.n_att}, channel mixing {config.n_ffn})"),
        ("vocabulary", str(config.n_vocab)),
        ("tokenizer", tokenizer.name if tokenizer else "none found; give one with --tokenizer"),
        ("stored as", str(checkpoint.read("head.weight").dtype).removeprefix("torch.")),
        ("fingerprint", checkpoint.fingerprint()),
        *[
            (f"layers {layers}", f"{device}, {precision}, {size} of weights; free memory {free}")
            for layers, device, precision, size, free in Strategy.parse(strategy).explain(config)
        ],
    ]
