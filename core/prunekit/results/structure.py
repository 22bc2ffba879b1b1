"""What an HDF5 file may be made of before anything in it is read.

HDF5 can say that a data set lies in another file, that it is put together from pieces of others, or that a filter must
be loaded to read it. It can also say that a data set has more elements than any memory holds. A results file has
none of this, and one from a stranger that has some is refused while nothing was opened and no memory was taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import h5py

from prunekit.errors import ResultsError
from prunekit.foreign import memory
from prunekit.results.format import MEMBERS
from prunekit.units import readable_bytes

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_KINDS = {h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING}  # complex numbers are pairs
_DEFLATED = 1032  # no byte becomes more than this many
_SMALL = 1 << 16  # bytes that are allowed whatever the file holds
_UNWRITTEN = "masks/gone"  # before the first step all of it is zero, and nothing of it is stored


@dataclass(frozen=True)
class Held:
    """A data set as its header describes it; ``kind`` is HDF5's class of its elements."""

    shape: tuple[int, ...]
    kind: int


def check(file: h5py.File) -> dict[str, Held]:
    """Look at every link, and at every data set that a reader may ask for.

    Returns:
        Those data sets by their paths.

    Raises:
        ResultsError: Naming what must not be there, and why.
    """
    size, room = file.id.get_filesize(), memory()
    held = {}
    for path in _hard_links(file):
        name = path.decode(errors="backslashreplace")
        if name.partition("/")[0] not in MEMBERS:
            continue
        item = h5py.h5o.open(file.id, path)
        if isinstance(item, h5py.h5d.DatasetID):
            wrong = _wrong(item, name, size, room)
            if wrong:
                raise ResultsError(f"{name} {wrong}")
            held[name] = Held(item.shape, item.get_type().get_class())
    return held


def _hard_links(file: h5py.File) -> Iterator[bytes]:
    """Paths of all objects; whatever is no hard link leads out of the file, or could."""
    found: list[tuple[bytes, int]] = []

    def note(name: bytes, info: object) -> None:
        found.append((name, getattr(info, "type", -1)))

    file.id.links.visit(note, info=True)
    for name, kind in found:
        if kind != h5py.h5l.TYPE_HARD:
            where = name.decode(errors="backslashreplace")
            raise ResultsError(f"{where} is a link to somewhere else; a results file holds all that is in it")
        yield name


def _wrong(data: h5py.h5d.DatasetID, name: str, size: int, room: int) -> str:
    """What a data set must not be."""
    properties = data.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        return "is put together from other data sets; a results file holds its data itself"
    if layout == h5py.h5d.CONTIGUOUS and properties.get_external_count():
        return "is stored in another file; a results file holds its data itself"
    if data.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return "has no elements and no shape"
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= _FILTERS:
        return f"needs the HDF5 filter {max(filters - _FILTERS)}; only gzip, shuffle and fletcher32 are read"
    kind = data.get_type().get_class()
    if kind not in _KINDS and not (kind == h5py.h5t.COMPOUND and data.dtype.kind == "c"):
        return "holds neither numbers nor text"
    element = data.get_type().get_size()
    needed = math.prod(data.shape) * element
    stored = data.get_storage_size()
    if stored > size:
        return f"takes {readable_bytes(stored)}, and the whole file has {readable_bytes(size)}"
    more = "which is more than the memory that is left"
    much = "" if needed <= room else f"takes {readable_bytes(needed)}, {more}"
    if stored == 0 and name == _UNWRITTEN:
        return much
    if layout == h5py.h5d.CHUNKED and stored:
        needed = max(needed, math.prod(properties.get_chunk()) * element)
    held = stored * (_DEFLATED if h5py.h5z.FILTER_DEFLATE in filters else 1) + _SMALL
    if needed > held:
        return f"claims {readable_bytes(needed)}, and {readable_bytes(stored)} of it are in the file"
    return much
