"""Reads JSON files that contain an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_engine.errors import CheckpointError, RwkvError


def read_json(path: Path, *, missing_ok: bool = False, error: type[RwkvError] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file, in UTF-8.
        missing_ok: whether to return an empty object if the file does not exist.
        error: the class of the error to raise.

    Raises:
        RwkvError: of class `error`: the file cannot be read, is not JSON, or does not contain an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as missing:
        if missing_ok:
            return {}
        raise error(f"{path}: no such file") from missing
    except OSError as failed:
        raise error(f"{path}: cannot be read: {failed.strerror or failed}") from failed
    except (ValueError, RecursionError) as damaged:  # wrong UTF-8 and wrong JSON are ValueErrors
        reason = f"{type(damaged).__name__}: {str(damaged)[:200]}"
        raise error(f"{path}: damaged, expected a JSON object ({reason}); download or export it again") from damaged
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
