"""Where a model is: the embedded one, a path, or a hub id that is downloaded."""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from os import PathLike
from pathlib import Path

from rwkv_engine.checks import shown
from rwkv_engine.errors import CheckpointError
from rwkv_engine.hub.download import download, parse_id

EMBEDDED = {"tales": Path(__file__).parent / "assets" / "tales"}


def locate(
    model: str | Path,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """The path of a model: of an embedded one by its name, else an existing path, else a hub id, which is downloaded.

    Args:
        model, revision, token, offline: as for `RWKV.from_pretrained`.
        weights: if false, only the other files of a hub id are downloaded.

    Raises:
        CheckpointError: the model is none of the three, the download failed, or a revision is given without a hub id.
    """
    if not isinstance(model, (str, PathLike)) or not str(model):
        raise CheckpointError(f"model: got {shown(model)}, expected tales, a path or a hub id")
    path = EMBEDDED.get(str(model), Path(model))
    try:
        path = path.expanduser()
        here = path.exists()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{model}: no such file or directory: {error}") from error
    if here and revision:
        raise CheckpointError(f"{model}: is on this machine; revision={revision!r} can only be given with a hub id")
    if here:
        return path
    if isinstance(model, str) and parse_id(model):
        return download(model, revision, token, offline, weights)
    raise CheckpointError(
        f"{model}: no such file or directory, not an embedded model ({', '.join(EMBEDDED)}), and not a hub id"
        f" (owner/name or owner/name/FILE.pth); {_advice(path)}"
    )


def _advice(path: Path) -> str:
    """The name that was probably meant: of an embedded model or of a neighbour of `path`."""
    names = list(EMBEDDED) if path.name == str(path) else []
    with suppress(OSError):
        names += [neighbour.name for neighbour in path.parent.iterdir()]
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.with_name(near[0])}?" if near else "check the name, or give the whole path of the file"
