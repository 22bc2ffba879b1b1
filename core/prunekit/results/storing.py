"""How one value lies in a file of format 2: under a checksum, whatever it is.

HDF5 checks the metadata of files that are written with its newer structures, attributes of fixed length among
them, and what has passed the ``fletcher32`` filter, which exists for chunks alone. Values outside chunks and
strings of variable length are covered by neither. So a number is a chunk of one element, a text is an array of
its UTF-8 bytes, and a string in an attribute has a fixed length.

h5py's low-level calls throughout: for thousands of small arrays its high-level ones take several times as long.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prunekit.records import Plain

LIBVER = ("v110", "v110")
"""The oldest structures whose metadata is all checksummed; every HDF5 since 1.10 reads them."""

CHUNK = 1 << 20  # bytes of a large array's chunks
_TEXT = 1 << 12  # bytes of a text's chunks
_DEPTH = 50
_NATIVE = {np.dtype(np.int64): h5py.h5t.NATIVE_INT64, np.dtype(np.float64): h5py.h5t.NATIVE_DOUBLE}
_GZIP = 1  # what a higher level saves of a mask history is not worth its time


def reading(path: Path) -> h5py.File:
    """Open a file as plain h5py does, since within a process all that have it open must agree about locks.

    Where a lock is held or cannot be had, it is read without: nobody changes a results file where it lies. Where
    this process has opened it in another way, that way is taken.
    """
    for locking in (None, False):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as error:
            if "lock" not in str(error):
                raise
    return h5py.File(path, "r", locking=True)


def chunks(shape: Sequence[int], itemsize: int, limit: int = CHUNK) -> tuple[int, ...]:
    """Shape of an array's chunks: whole rows, as many as ``limit`` bytes hold, and of about equal size.

    Examples:
        >>> chunks((10, 100), 1, limit=400), chunks((3, 1000), 1, limit=400)
        ((4, 100), (1, 334))
    """
    chunk = []
    room = max(1, limit // itemsize)  # elements
    for axis, length in enumerate(shape):
        most = max(1, min(length, room // max(1, math.prod(shape[axis + 1 :]))))
        parts = max(1, -(-length // most))
        chunk.append(max(1, -(-length // parts)))  # equal ones: the last chunk takes its whole space too
        room = max(1, room // chunk[-1])
    return tuple(chunk)


def store(
    group: h5py.Group, name: str, value: Any, chunk: tuple[int, ...] | None = None, compress: bool = False
) -> h5py.h5d.DatasetID:
    """Store an array of a fixed shape; one without axes gets one of length 1.

    An empty array has no chunks, nor anything that could be damaged outside the metadata.
    """
    array = np.ascontiguousarray(value)  # which makes of no axis one
    data = create(group, name, array.shape, array.dtype, chunk=chunk, compress=compress)
    if array.size:
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return data


def create(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    grows: bool = False,
    chunk: tuple[int, ...] | None = None,
    compress: bool = False,
) -> h5py.h5d.DatasetID:
    """Make a data set whose chunks are checked; one that ``grows`` does so along its first axis."""
    dtype = np.dtype(dtype)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if grows or 0 not in shape:
        properties.set_chunk(chunk or chunks(shape, dtype.itemsize))
        if compress:
            if dtype.itemsize > 1:
                properties.set_shuffle()
            properties.set_deflate(_GZIP)
        properties.set_fletcher32()  # the last to write is the first to read: nothing unchecked is unpacked
    space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, *shape[1:]) if grows else shape)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.h5d.create(group.id, name.encode(), kind, space, properties, lcpl=_links())


def _links() -> Plain:
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    return links


def growing(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, axes: Sequence[str], unit: str
) -> None:
    """Make an empty column: a data set that grows by rows of ``shape``."""
    rows = 64 if not shape else 16 if math.prod(shape) <= 64 else 1
    row = chunks(shape, np.dtype(dtype).itemsize)
    data = create(group, name, (0, *shape), dtype, grows=True, chunk=(rows, *(max(1, n) for n in row)))
    describe(data, axes, unit)


def describe(data: h5py.h5d.DatasetID, axes: Sequence[str], unit: str) -> None:
    """Say what a new array's axes are and what it is measured in."""
    for name, value in (("units", attribute(unit)), ("axes", attribute(list(axes)))):
        kind = h5py.h5t.py_create(value.dtype, logical=True)
        made = h5py.h5a.create(data, name.encode(), kind, h5py.h5s.create_simple(value.shape))
        made.write(value, mtype=h5py.h5t.py_create(value.dtype))


def append_number(group: h5py.Group, name: str, number: float) -> None:
    """Add a number to a column of numbers, in half the time of :func:`append`: no type and no shape is looked up."""
    data = h5py.h5d.open(group.id, name.encode())
    space = data.get_space()
    (length,) = space.shape
    data.set_extent((length + 1,))
    space.set_extent_simple((length + 1,), (h5py.h5s.UNLIMITED,))
    space.select_hyperslab((length,), (1,))
    array = np.array([number])
    kind = _NATIVE.get(array.dtype)  # HDF5 makes of it what the column holds
    data.write(h5py.h5s.create_simple((1,)), space, array, kind)


def append(group: h5py.Group, name: str, rows: Any) -> None:
    """Add rows to a data set that grows."""
    data = h5py.h5d.open(group.id, name.encode())
    length, *shape = data.shape
    array = np.ascontiguousarray(rows, dtype=data.dtype).reshape(-1, *shape)
    data.set_extent((length + len(array), *shape))
    space = data.get_space()
    space.select_hyperslab((length, *(0 for _ in shape)), array.shape)
    data.write(h5py.h5s.create_simple(array.shape), space, array)


def read(group: h5py.Group, name: str) -> np.ndarray:
    """Everything in a data set."""
    data = h5py.h5d.open(group.id, name.encode())
    array = np.empty(data.shape, data.dtype)
    if array.size:
        data.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def has(group: h5py.Group, path: str) -> bool:
    """Is there such a member? h5py's own ``in`` and ``get`` say no of one that is damaged."""
    upto = accumulate(path.split("/"), "{}/{}".format)
    return all(group.id.links.exists(part.encode()) for part in upto)


def members(group: h5py.Group, path: str) -> list[str]:
    """Names in a group, none if it is not there."""
    return list(group[path]) if has(group, path) else []


def store_text(group: h5py.Group, name: str, text: str) -> None:
    """Store a text, which can grow."""
    size = len(text.encode())
    create(group, name, (0,), np.uint8, grows=True, chunk=(max(64, min(size, _TEXT)),))
    append_text(group, name, text)


def append_text(group: h5py.Group, name: str, text: str) -> None:
    """Make a text longer."""
    append(group, name, np.frombuffer(text.encode(), np.uint8))


def replace_text(group: h5py.Group, name: str, text: str) -> None:
    """Put another text in place of the one that is there, if there is one, and into the same space."""
    if not has(group, name):
        store_text(group, name, text)
        return
    encoded = np.frombuffer(text.encode(), np.uint8)
    data = h5py.h5d.open(group.id, name.encode())
    data.set_extent(encoded.shape)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, encoded)


def read_text(group: h5py.Group, name: str) -> str:
    """A text."""
    return read(group, name).tobytes().decode()


def json_text(value: object, indent: int | None = None) -> str:
    """A JSON document. JSON has neither NaN nor infinities; what is one is null."""
    return json.dumps(_without_infinities(value), indent=indent, allow_nan=False)


def _without_infinities(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return value


def read_json(group: h5py.Group, name: str) -> Plain:
    """A JSON document."""
    return parse_json(read_text(group, name))


def read_json_lines(group: h5py.Group, name: str) -> list[Plain]:
    """A JSON document per line."""
    return [parse_json(line) for line in read_text(group, name).split("\n") if line]


def parse_json(text: str) -> Plain:
    """Plain data. Python writes NaN and infinity where JSON has neither; what is not finite is null.

    Raises:
        ValueError: If it is no JSON, or so deep that whoever walks through it would run out of stack.
    """
    value = level = [json.loads(text, parse_constant=lambda _: None, parse_float=_finite)]
    for _ in range(_DEPTH):
        inner = [v for item in level for v in (item.values() if isinstance(item, dict) else item)]
        level = [v for v in inner if isinstance(v, dict | list)]
        if not level:
            return value[0]
    raise ValueError(f"JSON that is nested more than {_DEPTH} times")


def _finite(digits: str) -> float | None:
    value = float(digits)  # 1e999 is infinite
    return value if math.isfinite(value) else None


def attribute(value: Any) -> np.ndarray:
    """What an attribute can hold under the checksum of its object: numbers, and strings of a fixed length."""
    if isinstance(value, str):
        encoded = value.encode()
        return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))
    if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
        encoded_list = [v.encode() for v in value]
        width = max([1, *map(len, encoded_list)])
        return np.array(encoded_list, dtype=h5py.string_dtype("utf-8", width))
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{value!r}: an attribute is a number, a string, or a list of either")
    return array


def plain(value: Plain) -> Plain:
    """An attribute's value as Python has it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
