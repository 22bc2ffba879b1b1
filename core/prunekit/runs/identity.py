"""What identifies a run: a hash of the values that determine its results, and a digest of each file that it reads.

The hash is the same on every machine. It holds no path: a file is known by its content, whose digest stands in the
inputs, so data that change are changed data and not another spec. Versions stand in the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from prunekit.component import Options
from prunekit.data import Split, Splits
from prunekit.errors import DataError
from prunekit.network.shards import files_read as checkpoint_files
from prunekit.records import Plain, Row
from prunekit.spec.later import without_later
from prunekit.spec.resolve import Part, Spec

_WITHOUT_EFFECT = ("name", "recorders", "folder")
_LATER = ("until",)  # keys that the first release did not have: where one is not given, its hashes hold


def spec_hash(spec: Spec, bound: Row, device: str) -> str:
    """SHA-256 of the values that determine a run's results.

    Args:
        spec: Says which of the values are paths.
        bound: The spec's data, with what the run's data decided.
        device: The type of the run's device, such as ``cuda``, whatever ``auto`` was or its number.
    """
    values = without_later({key: value for key, value in bound.items() if key not in _WITHOUT_EFFECT})
    values["device"] = device
    for place, part in spec.parts.items():
        if place[0] not in _WITHOUT_EFFECT:
            here: Any = values
            for key in place[:-1]:
                here = here[key]
            here[place[-1]] = _without_paths(part)
    determining = without_later(values)
    sequential = (determining.get("prune") or {}).get("sequential")
    if sequential is not None:
        del sequential["offload"]  # where things wait
    text = json.dumps(determining, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def inputs(spec: Spec) -> dict[str, str]:
    """The files that a run reads, as the spec names them, each with the digest of its content.

    Raises:
        DataError: If one cannot be read.
    """
    return {name: digest(file) for name, file in sorted(files_read(spec).items())}


def files_read(spec: Spec) -> dict[str, Path]:
    """The files that a run reads, as the spec names them, and where they lie."""
    found: dict[str, Path] = {}
    for place, part in spec.parts.items():
        if place[0] in _WITHOUT_EFFECT:
            continue
        files = [*part.build().files()]
        checkpoint = part.engine.get("checkpoint")
        if checkpoint is not None:
            files += checkpoint_files(part.locate(checkpoint))
        found |= {_as_written(file, part): file for file in files}
    return found


def digest(path: Path) -> str:
    """``sha256:`` and the digest of a file's content; read once while its size and time stay the same.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        status = path.stat()
        return _digest(os.path.realpath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def fingerprint(splits: Splits) -> str:
    """``sha256:`` and a digest of all examples and targets as a data set gives them: types, shapes and values."""
    sums = hashlib.sha256()
    for name in ("train", "valid", "test"):
        split: Split | None = getattr(splits, name)
        for t in () if split is None else (*split.inputs, split.y):
            array = t.detach().cpu().contiguous()
            sums.update(f"{name} {array.dtype} {tuple(array.shape)};".encode())
            sums.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{sums.hexdigest()}"


@cache
def _digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _as_written(file: Path, part: Part) -> str:
    """A file under the name that the spec gives it, or its folder; never made absolute."""
    written = [*part.paths.values(), *filter(None, [part.engine.get("checkpoint")]), Path()]
    for path in map(Path, written):
        if file.is_relative_to(part.locate(path)):
            return (path / file.relative_to(part.locate(path))).as_posix()
    return file.as_posix()  # the plugin's own, found without the spec


def _without_paths(part: Part) -> dict[str, Plain]:
    """A plugin's name and options. That a path is given counts, not which; where none is, ``None`` stays."""
    options = part.options
    engine = {k: v for k, v in part.engine.items() if k != "checkpoint" or v is None}
    engine = {k: v for k, v in engine.items() if k not in _LATER or v is not None}
    kept = options.model_dump(mode="json", exclude=_paths(options) or None)
    return {"name": part.cls.name, **engine, **kept}


def _paths(value: Options | Mapping[Any, Any] | Iterable[Any]) -> dict[Any, Any]:
    """Where paths stand in options, in the form in which pydantic is told what to leave out."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, BaseModel):
        items = value
    else:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
    places: dict[Any, Any] = {}
    for key, inner in items:
        if isinstance(inner, Path):
            places[key] = True
        elif isinstance(inner, BaseModel | Mapping | list | tuple) and (deeper := _paths(inner)):
            places[key] = deeper
    return places
