"""Weights in several files: a folder, or an index that says which tensor is in which file."""

from __future__ import annotations

import json
from pathlib import Path

from prunekit.errors import CheckpointError
from prunekit.foreign import unreadable

_INDEX = ".index.json"
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
_MOST = 64 << 20  # bytes of an index


def weight_files(path: Path) -> list[Path]:
    """The files that a checkpoint's weights are in: itself; of a folder or an index, the files of the weights.

    Raises:
        CheckpointError: If a folder holds none, or an index cannot be read or names what is not there.
    """
    if path.is_dir():
        indices = sorted(path.glob(f"*{_INDEX}"))
        if indices:  # one for each format
            return weight_files(next((i for i in indices if ".safetensors" in i.name), indices[0]))
        for ending in _ENDINGS:
            found = sorted(path.glob(f"*{ending}"))
            if found:
                return found
        raise CheckpointError(f"checkpoint {path}: holds no weights (*{', *'.join(_ENDINGS)})")
    return _indexed(path) if path.name.endswith(_INDEX) else [path]


def files_read(path: Path) -> list[Path]:
    """The same with the index, whose content counts too."""
    files = weight_files(path)
    indices = sorted(path.glob(f"*{_INDEX}")) if path.is_dir() else [path]
    return [*(i for i in indices if i.name.endswith(_INDEX)), *files]


def _indexed(path: Path) -> list[Path]:
    if why := unreadable(path):
        raise CheckpointError(f"checkpoint {path}: {why}")
    try:
        if path.stat().st_size > _MOST:
            raise ValueError("is too large for an index")
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: is not an index of weights (weight_map): {error}"
        ) from None
    strange = [n for n in names if not isinstance(n, str) or Path(n).name != n or n.endswith(_INDEX)]
    if strange:
        raise CheckpointError(
            f"checkpoint {path}: names files that are not beside it: {', '.join(map(str, strange[:4]))}"
        )
    files = [path.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(
            f"checkpoint {path}: lacks {', '.join(missing[:6]) or 'all files'} of {len(files)}"
        )
    return files
