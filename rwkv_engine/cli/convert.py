"""`rwkv-engine convert`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from rwkv_engine import convert as conversion
from rwkv_engine.cli.options import hub_options, progress_bar, stderr
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.errors import RwkvError
from rwkv_engine.hub.download import download, parse_id
from rwkv_engine.pipeline import locate
from rwkv_engine.progress import Progress

_ONLY_DIRECTORY = ("tokenizer_file", "push_to_hub", "model_name", "is_chat")


def _bytes(context: click.Context, option: click.Parameter, value: str) -> int:
    try:
        return conversion.bytes_of(value)
    except RwkvError as error:
        raise click.BadParameter(str(error)) from error


def _size(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is None or value.upper() in conversion.SIZES:
        return value and value.upper()
    raise click.BadParameter(f"{value!r} is not one of {', '.join(conversion.SIZES)}")


@click.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
@click.option("--repo-id", metavar="OWNER/NAME", help="Take --checkpoint-file from this repository on the hub.")
@click.option(
    "--checkpoint-file",
    metavar="FILE",
    required=True,
    help="The model to convert: a path or a hub id; with --repo-id, a file in that repository.",
)
@click.option(
    "--output-dir", type=click.Path(path_type=Path), help="Write a Hugging Face directory; an existing one is replaced."
)
@click.option(
    "--output-file",
    type=click.Path(path_type=Path),
    help="Write a raw checkpoint, NAME.pth; an existing one is replaced.",
)
@click.option(
    "--tokenizer-file",
    type=click.Path(path_type=Path),
    help="Tokenizer to include; by default searched beside the checkpoint.",
)
@click.option(
    "--size",
    callback=_size,
    metavar="SIZE",
    help=f"Refuse a model of any other size; one of {', '.join(conversion.SIZES)}.",
)
@click.option("--is-chat", is_flag=True, help="Explain the prompt format of chat models in the model card.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="Convert all tensors to this precision; by default they stay as they are.",
)
@click.option(
    "--max-shard-size",
    default="5GB",
    metavar="BYTES",
    show_default=True,
    callback=_bytes,
    help="Split the weights into files of at most this size.",
)
@click.option(
    "--undo-rescale/--no-undo-rescale",
    default=None,
    help="If transformers saved the model with divided weights (rescale_every): multiply them back, or keep them.",
)
@click.option("--push-to-hub", is_flag=True, help="Upload the directory to the hub, as --model-name.")
@click.option("--model-name", metavar="OWNER/NAME", help="Repository to upload to; created if it does not exist.")
@hub_options
@click.pass_context
def convert(
    context: click.Context,
    repo_id: str | None,
    checkpoint_file: str,
    output_dir: Path | None,
    output_file: Path | None,
    tokenizer_file: Path | None,
    size: str | None,
    is_chat: bool,
    dtype: str | None,
    max_shard_size: int,
    undo_rescale: bool | None,
    push_to_hub: bool,
    model_name: str | None,
    revision: str | None,
    offline: bool,
) -> None:
    """Converts a model to a Hugging Face directory, which transformers loads too, or back to a raw .pth file.

    The weights stay bit-identical unless --dtype or --undo-rescale is given. The directory contains config.json,
    model.safetensors (several and an index, if large), generation_config.json, a model card, and the tokenizer if there
    is one. Options may be written with underscores too.
    """
    if (output_dir is None) == (output_file is None):
        raise click.UsageError("give --output-dir DIR for a Hugging Face directory, or --output-file FILE.pth")
    if output_file:
        for name in (*_ONLY_DIRECTORY, "max_shard_size"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --output-dir only")
    if push_to_hub != (model_name is not None):
        raise click.UsageError("--push-to-hub and --model-name OWNER/NAME go together")
    if model_name and (parse_id(model_name) or ("", "file"))[1] is not None:
        raise click.UsageError(f"--model-name: expected OWNER/NAME, got {model_name!r}")
    kind = DTYPES[dtype] if dtype else None
    console = stderr()
    if repo_id:
        model = download(f"{repo_id}/{checkpoint_file}", revision, offline=offline)
    else:
        model = locate(checkpoint_file, revision, offline=offline)
    if output_file:
        done = _with_bar(
            console,
            lambda progress: conversion.to_pth(
                model, output_file, progress, dtype=kind, undo_rescale=undo_rescale, size=size
            ),
        )
        console.print(f"{output_file}: {done.n_bytes / 1e6:,.1f} MB, {done.dtype}")
    if output_dir:
        done = _with_bar(
            console,
            lambda progress: conversion.to_hugging_face(
                model,
                output_dir,
                shard_size=max_shard_size,
                tokenizer=tokenizer_file,
                is_chat=is_chat,
                progress=progress,
                dtype=kind,
                undo_rescale=undo_rescale,
                size=size,
            ),
        )
        console.print(f"{output_dir}: {done.n_bytes / 1e6:,.1f} MB, {done.dtype}; {done.tokenizer}")
        if model_name:
            console.print(_pushed(output_dir, done.files, model_name))


def _with_bar(console: Console, run: Callable[[Progress], conversion.Converted]) -> conversion.Converted:
    with progress_bar(console, "converting") as bar:
        task = bar.add_task("converting", total=None)
        return run(lambda done, total: bar.update(task, completed=done, total=total))


def _pushed(folder: Path, names: tuple[str, ...], repository: str) -> str:
    """Uploads the files that were written, and no others in the folder; returns the address."""
    from rwkv_engine.hub.upload import upload

    with tempfile.TemporaryDirectory() as staged:
        for name in names:
            (Path(staged) / name).symlink_to((folder / name).resolve())
        try:
            return f"uploaded to {upload(Path(staged), repository)}"
        except RwkvError as error:
            raise type(error)(f"{error}; the converted model is whole in {folder}") from error
