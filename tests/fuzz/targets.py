"""What is fuzzed: functions of bytes that return, or refuse as prunekit refuses. Anything else is a finding.

Where a format has checksums of its own, the bytes say what to change and the checksums are made anew: what is tried is
the reading behind them. ``results`` alone changes the file as it lies, and what is read then must be what was written.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import h5py
import matplotlib.pyplot  # noqa: F401 - which takes its time
import numpy as np
import running
import torch

import prunekit as pk
from prunekit.network import checkpoint
from prunekit.plugins.host import PluginManager
from prunekit.results import storing
from prunekit.runs.state import State
from prunekit.spec import text
from prunekit.spec.resolve import resolve
from prunekit_cli.console import Screen
from prunekit_cli.overview import layers, overview
from prunekit_plugins.datasets.mnist import read_idx
from prunekit_plugins.datasets.npz import Arrays

FOLDER = Path(
    tempfile.mkdtemp(prefix="prunekit-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
)


class Choices:
    """Decisions taken from bytes, one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, limit: int) -> int:
        """A number."""
        taken = self._data[self._at : self._at + 2]
        self._at += 2
        return int.from_bytes(taken, "little") % limit

    def rest(self, size: int) -> bytes:
        """Bytes."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")


# -- the spec ----------------------------------------------------------------------------------------


@cache
def _manager() -> PluginManager:
    return PluginManager(code=False)


def spec(data: bytes) -> None:
    """A spec's text, and the value of a ``--set``."""
    written = data.decode("utf-8", "replace")
    for read in (
        lambda: resolve(text.parse(written, "spec.yaml"), {}, FOLDER, _manager()),
        lambda: text.parse_value(written),
    ):
        with contextlib.suppress(pk.PrunekitError):
            read()


# -- results -----------------------------------------------------------------------------------------


@cache
def results_file() -> bytes:
    """A small results file of a run with everything in it."""
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    running.write_data(folder / "data.npz")
    pk.run(running.mapping(folder), folder / "out.h5").close()
    return (folder / "out.h5").read_bytes()


@cache
def _expected() -> dict[str, object]:
    (FOLDER / "whole.h5").write_bytes(results_file())
    return running.read(FOLDER / "whole.h5")


def results(data: bytes) -> None:
    """The bytes of a file, as they lie there."""
    path = FOLDER / "bytes.h5"
    path.write_bytes(data)
    try:
        found = running.read(path)
    except pk.ResultsError:
        return
    assert found == _expected(), "a damaged file was read as other numbers"


def results_parts(data: bytes) -> None:
    """Objects of a file that are taken away, replaced, linked and rewritten, with right checksums."""
    path, choices = FOLDER / "parts.h5", Choices(data)
    path.write_bytes(results_file())
    with h5py.File(path, "r+", libver=storing.LIBVER) as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(1 + choices.below(3)):
            with contextlib.suppress(*_NOT_WRITTEN):
                _CHANGES[choices.below(len(_CHANGES))](file, names[choices.below(len(names))], choices)
    with contextlib.suppress(pk.PrunekitError):
        _look(path, drawn=choices.below(40) == 39)


_NOT_WRITTEN = (
    *(KeyError, ValueError, TypeError, OSError, RuntimeError, AttributeError, IndexError),
    MemoryError,  # of the change, not of what is tried
)
"""What h5py says of changes that it does not make."""


def _look(path: Path, drawn: bool) -> None:
    """Everything that a reader shows of a file."""
    running.read(path)
    with pk.open(path) as opened:
        screen = Screen(file=io.StringIO(), width=100)
        for part in (*overview(opened), *layers(opened)):
            screen.print(part)
        json.dumps(opened.summary, allow_nan=False)
        opened.whole()
        if drawn:
            opened.plot(FOLDER / "figure.png")


_VALUES = (
    None,
    True,
    -1,
    0,
    7,
    10**30,
    0.5,
    1e308,
    "",
    "x\x1b[2J",
    [],
    [1],
    {},
    {"a": {"b": []}},
    "a/b",
    ".",
)
_TYPES = ("f8", "f4", "i8", "u1", "i2", "?", "S4", "c8", "u8", ">f8")
_SHAPES = ((), (0,), (1,), (2,), (3,), (4,), (3, 2), (1, 1, 1), (234,), (3, 0))


def _delete(file: h5py.File, name: str, choices: Choices) -> None:
    del file[name]


def _replace(file: h5py.File, name: str, choices: Choices) -> None:
    shape, kind = _SHAPES[choices.below(len(_SHAPES))], np.dtype(_TYPES[choices.below(len(_TYPES))])
    size = int(np.prod(shape)) * kind.itemsize
    array = np.frombuffer(choices.rest(size), kind).reshape(shape)
    del file[name]
    storing.store(file, name, array)


def _overwrite(file: h5py.File, name: str, choices: Choices) -> None:
    data = file[name]
    if data.size:
        flat = data[()].reshape(-1)
        flat[choices.below(flat.size)] = np.frombuffer(choices.rest(8), "i8")[0] % 300 - 20
        data[...] = flat.reshape(data.shape)


def _resize(file: h5py.File, name: str, choices: Choices) -> None:
    file[name].resize(choices.below(6), axis=0)


def _edit_json(file: h5py.File, name: str, choices: Choices) -> None:
    texts = [n for n in ("spec/resolved", "environment", "prunable/tensors", "weights/tensors") if n in file]
    texts += [n for n in ("probes/line/end/summary", "spec/origins") if n in file]
    path = texts[choices.below(len(texts))]
    value = node = json.loads(file[path][()].tobytes())
    for _ in range(6):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = keys[choices.below(len(keys))]
        if choices.below(2) or not isinstance(node[key], dict | list):
            if choices.below(4) == 0:
                del node[key]
            else:
                node[key] = _VALUES[choices.below(len(_VALUES))]
            break
        node = node[key]
    storing.replace_text(file, path, json.dumps(value))


def _edit_text(file: h5py.File, name: str, choices: Choices) -> None:
    data = file[name]
    if data.dtype == np.uint8 and data.size:
        raw = bytearray(data[()].tobytes())
        raw[choices.below(len(raw))] = choices.below(256)
        data[...] = np.frombuffer(raw, np.uint8)


def _attribute(file: h5py.File, name: str, choices: Choices) -> None:
    node = file if choices.below(3) == 0 else file[name]
    key = (*node.attrs, "kind", "units")[choices.below(len(node.attrs) + 2)]
    values = (
        0,
        -1,
        2**40,
        "",
        "complete",
        "running",
        "x" * 300,
        np.zeros(3),
        np.float64("nan"),
        ["a", "b"],
        b"\xff",
    )
    value = values[choices.below(len(values))]
    node.attrs[key] = storing.attribute(value) if isinstance(value, str | list) else value


def _move(file: h5py.File, name: str, choices: Choices) -> None:
    names: list[str] = []
    file.visit(names.append)
    target = names[choices.below(len(names))] + "x" * choices.below(2)
    file.move(name, target)


def _link(file: h5py.File, name: str, choices: Choices) -> None:
    names: list[str] = []
    file.visit(names.append)
    other = names[choices.below(len(names))]
    target = (file[other], file["/"], h5py.SoftLink(f"/{other}"), h5py.ExternalLink("bytes.h5", f"/{other}"))
    chosen = target[choices.below(len(target))]
    if name in file:
        del file[name]
    file[name] = chosen


def _odd_storage(file: h5py.File, name: str, choices: Choices) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    which = choices.below(4)
    if which == 0:
        size = choices.below(60000) * 2 ** choices.below(40)
        chunk = min(
            max(64, size >> 16), (1 << 31) // kind.itemsize
        )  # HDF5 makes an index of all chunks at once
        file.create_dataset(name, (size,), kind, chunks=(chunk,))
    elif which == 1:
        file.create_dataset(name, shape, kind, external=[("bytes.h5", 0, h5py.h5f.UNLIMITED)])
    elif which == 2:
        layout = h5py.VirtualLayout(shape, kind)
        layout[...] = h5py.VirtualSource("bytes.h5", name, shape)
        file.create_virtual_dataset(name, layout)
    else:
        file.create_dataset(name, data="text" * choices.below(9), dtype=h5py.string_dtype())


_CHANGES: tuple[Callable[[h5py.File, str, Choices], None], ...] = (
    *(_delete, _replace, _overwrite, _resize, _edit_json, _edit_json),
    *(_edit_text, _attribute, _move, _link, _odd_storage),
)


# -- what torch writes -------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """What the checkpoints belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.ModuleList([torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)])
        self.register_buffer("count", torch.tensor(3))


def _members(whole: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@cache
def checkpoint_members() -> dict[str, bytes]:
    """A checkpoint, member by member."""
    whole = io.BytesIO()
    torch.save(Net().state_dict(), whole)
    return _members(whole.getvalue())


@cache
def state_members() -> dict[str, bytes]:
    """A state, member by member."""
    tensors = Net().state_dict()
    state = State(
        {"seed": 1}, "hash", {"data.npz": "sha256:1"}, phase="prune", done=1, current=dict(tensors),
        masks={"fc.0.weight": torch.ones(4, 6, dtype=torch.bool)}, optimizer={"state": {}, "param_groups": []},
        metrics={"dense": {"train_loss": 0.5, "test_loss": None}}, weights={"dense": dict(tensors)},
        history={"dense": [{"epoch": 1, "running_loss": 0.5}]}, examples=torch.arange(4), warnings=["careful"],
    )  # fmt: skip
    state.save(FOLDER / "a.state")
    return _members((FOLDER / "a.state").read_bytes())


def _archive(path: Path, members: Mapping[str, bytes], pickled: bytes) -> Path:
    """Members as they are but for the pickled structure, with right checksums."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)
    return path


def torch_checkpoint(data: bytes) -> None:
    """The structure of a torch checkpoint: a pickle that may not execute anything."""
    with contextlib.suppress(pk.PrunekitError):
        checkpoint.load_into(Net(), _archive(FOLDER / "c.pt", checkpoint_members(), data))


def state(data: bytes) -> None:
    """The structure of a state."""
    path = _archive(FOLDER / "b.state", state_members(), data)
    with contextlib.suppress(pk.PrunekitError):
        State.load(path).check_fits(path, Net().state_dict())


def safetensors(data: bytes) -> None:
    """A safetensors file as it lies."""
    (FOLDER / "c.safetensors").write_bytes(data)
    with contextlib.suppress(pk.PrunekitError):
        checkpoint.load_into(Net(), FOLDER / "c.safetensors")


# -- data --------------------------------------------------------------------------------------------


def npz(data: bytes) -> None:
    """The first array of an archive, header and all."""
    targets = io.BytesIO()
    np.save(targets, np.zeros(3, np.int64))
    kind = zipfile.ZIP_DEFLATED if data[-1:] > b"\x80" else zipfile.ZIP_STORED
    with zipfile.ZipFile(FOLDER / "a.npz", "w", kind) as archive:
        archive.writestr("train_x.npy", data)
        archive.writestr("train_y.npy", targets.getvalue())
    with contextlib.suppress(pk.PrunekitError):
        Arrays(path=FOLDER / "a.npz").load(0)


def npz_archive(data: bytes) -> None:
    """An archive of arrays as it lies."""
    (FOLDER / "b.npz").write_bytes(data)
    with contextlib.suppress(pk.PrunekitError):
        Arrays(path=FOLDER / "b.npz").load(0)


def idx(data: bytes) -> None:
    """An IDX file, as it lies, and compressed."""
    (FOLDER / "a").write_bytes(data)
    (FOLDER / "a.gz").write_bytes(data if data[:1] == b"\x1f" else gzip.compress(data, 1))
    for name in ("a", "a.gz"):
        with contextlib.suppress(pk.PrunekitError):
            read_idx(FOLDER / name)


TARGETS: dict[str, Callable[[bytes], None]] = {
    t.__name__: t
    for t in (spec, results, results_parts, state, torch_checkpoint, safetensors, npz, npz_archive, idx)
}


def seeds(target: str) -> list[bytes]:
    """Good inputs, from which the fuzzer begins."""
    root = Path(__file__).parents[2]
    if target == "spec":
        specs = [p.read_bytes() for p in sorted((root / "examples").rglob("*.yaml"))]
        return [running.YAML.encode(), *specs]
    if target == "results":
        return [results_file()]
    if target == "results_parts":
        return [
            bytes([2, 0, kind, 0, name, 0, *range(40)])
            for kind in range(len(_CHANGES))
            for name in range(0, 75, 7)
        ]
    if target in ("state", "torch_checkpoint"):
        members = state_members() if target == "state" else checkpoint_members()
        return [content for name, content in members.items() if name.endswith("data.pkl")]
    buffer = io.BytesIO()
    if target == "safetensors":
        from safetensors.torch import save

        return [save(Net().state_dict())]
    if target == "npz":
        arrays = [
            np.zeros((3, 2)),
            np.zeros((3, 2, 2), np.uint8),
            np.zeros((3, 1), "f2", order="F"),
            np.array(["a"]),
        ]
        found = []
        for array in arrays:
            buffer = io.BytesIO()
            np.save(buffer, array)
            found.append(buffer.getvalue())
        return found
    if target == "npz_archive":
        np.savez_compressed(buffer, train_x=np.zeros((3, 2)), train_y=np.zeros(3, int))
        other = io.BytesIO()
        np.savez(other, train_x=np.zeros((3, 2)), train_y=np.zeros(3, int))
        return [buffer.getvalue(), other.getvalue()]
    good = b"\0\0\x08\x02\0\0\0\2\0\0\0\3abcdef"
    return [good, gzip.compress(good)]
