"""Tables of examples on disk: folders of the library datasets, Parquet, JSON lines, CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit import DataError
from prunekit_plugins._extra import extra

Columns = Mapping[str, Sequence[Any]]

_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
_ENDINGS = (".parquet", ".jsonl", ".json", ".csv")


def tables(path: Path, where: str) -> dict[str, Columns]:
    """The splits of a folder or file: ``train``, ``valid`` and ``test``, as far as there are.

    Args:
        path: A folder that ``save_to_disk`` wrote; one with a file for each split, named after it; or a single file, the
            training split.
        where: For messages.

    Raises:
        DataError: If nothing can be read there.
    """
    if path.is_file():
        return {"train": _read(path, where)}
    if not path.is_dir():
        raise DataError(f"{where}: {path} does not exist; prunekit downloads nothing")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path, where)
    found: dict[str, Columns] = {}
    for file in sorted(p for p in path.rglob("*") if p.suffix in _ENDINGS):
        split = next((name for name, words in _SPLITS.items() if _named(file, words)), None)
        if split is not None:
            found[split] = _joined(found.get(split), _read(file, where), file, where)
    if "train" not in found:
        raise DataError(
            f"{where}: {path} holds no training split: neither a folder that save_to_disk wrote, nor a file such as "
            f"train.parquet, train.jsonl or train.csv"
        )
    return found


def _named(file: Path, words: Sequence[str]) -> bool:
    """Whether a file is named after a split, as in ``train-00000-of-00002.parquet``."""
    return file.stem.lower().replace("_", "-").split("-")[0] in words


def _saved(path: Path, where: str) -> dict[str, Columns]:
    datasets = extra("datasets", "hf", where)
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # it raises many kinds
        raise DataError(f"{where}: {path} cannot be read: {error}") from error
    if not isinstance(loaded, Mapping):
        return {"train": {name: loaded[name] for name in loaded.column_names}}
    found: dict[str, Columns] = {}
    for name, words in _SPLITS.items():
        own = next((word for word in words if word in loaded), None)
        if own is not None:
            found[name] = {column: loaded[own][column] for column in loaded[own].column_names}
    if "train" not in found:
        raise DataError(f"{where}: {path} has no split train; it has {', '.join(loaded)}")
    return found


def _read(file: Path, where: str) -> Columns:
    try:
        if file.suffix == ".parquet":
            table = extra("pyarrow.parquet", "hf", where).read_table(file)
            columns: Columns = table.to_pydict()
            return columns
        if file.suffix == ".csv":
            with file.open(encoding="utf-8", newline="") as lines:
                return _columns(list(csv.DictReader(lines)))
        text = file.read_text(encoding="utf-8")
        whole = text.lstrip().startswith("[")
        return _columns(
            json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line]
        )
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{where}: {file}: cannot be read: {error}") from None


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    names = list(rows[0]) if rows else []
    try:
        return {name: [row[name] for row in rows] for name in names}
    except KeyError as error:
        raise ValueError(f"a row lacks {error}") from None


def _joined(before: Columns | None, more: Columns, file: Path, where: str) -> Columns:
    if before is None:
        return more
    if set(before) != set(more):
        raise DataError(
            f"{where}: {file} has the columns {', '.join(more)}, but another file of its split has {', '.join(before)}"
        )
    return {name: [*values, *more[name]] for name, values in before.items()}
