"""Of a thousand flipped bits and two hundred cuts in each kind of file, none is read as other numbers."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import running
import torch

import prunekit as pk
from prunekit.network import checkpoint
from prunekit.observing.listener import Listener
from prunekit.runs.state import State
from prunekit_plugins.datasets.mnist import read_idx
from prunekit_plugins.datasets.npz import Arrays

FLIPS, CUTS = 1000, 200


class Kind(NamedTuple):
    """A kind of file: how one is made, and what is read of it, in a form that compares."""

    make: Callable[[Path], None]
    read: Callable[[Path], object]


def bits(value: object) -> object:
    """Plain data that compare bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    return value


def make_run(path: Path, stop: bool = False) -> None:
    """A run, complete or stopped after a step, with its state beside it."""
    running.write_data(path.with_name("data.npz"))
    spec = running.mapping(path.parent)

    class Stopping(Listener):
        def step(self, record: pk.StepRecord) -> None:
            if stop and record.step == 2:
                raise KeyboardInterrupt

    try:
        pk.run(spec, path, listener=Stopping()).close()
    except KeyboardInterrupt:
        assert stop


def make_state(path: Path) -> None:
    make_run(path.with_name("stopped.h5"), stop=True)
    path.write_bytes(path.with_name("stopped.h5.state").read_bytes())


def read_state(path: Path) -> object:
    state = State.load(path)
    return bits({**vars(state), "probes": None})


def make_checkpoint(path: Path) -> None:
    torch.manual_seed(0)
    torch.save({f"w{i}": torch.randn(9, 7) for i in range(5)}, path)


def read_npz(path: Path) -> object:
    splits = Arrays(path=path).load(0)
    return bits({"x": splits.train.x, "y": splits.train.y})


def make_npz(path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(path, train_x=draw.normal(size=(40, 6)), train_y=draw.integers(0, 3, 40))


def make_idx(path: Path) -> None:
    path.write_bytes(
        gzip.compress(b"\0\0\x08\x02" + struct.pack(">2I", 60, 50) + random.Random(0).randbytes(3000))
    )


KINDS = {
    "results": Kind(make_run, running.read),
    "unfinished results": Kind(lambda path: make_run(path, stop=True), running.read),
    "state": Kind(make_state, read_state),
    "torch checkpoint": Kind(make_checkpoint, lambda path: bits(checkpoint.read(path))),
    "npz": Kind(make_npz, read_npz),
    "idx.gz": Kind(make_idx, lambda path: read_idx(path).tobytes()),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_no_flipped_bit_and_no_cut_is_read_as_other_numbers(name: str, tmp_path: Path) -> None:
    kind, path = KINDS[name], tmp_path / ("file.gz" if name == "idx.gz" else "file.h5")
    if name in ("torch checkpoint", "npz"):
        path = tmp_path / f"file.{'pt' if name != 'npz' else 'npz'}"
    kind.make(path)
    whole, expected, draw = path.read_bytes(), kind.read(path), random.Random(name)
    counts = {"refused": 0, "read as it was": 0}
    for number in range(FLIPS + CUTS):
        if number < FLIPS:
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        else:
            damaged = bytearray(whole[: draw.randrange(len(whole))])
        path.write_bytes(damaged)
        try:
            found = kind.read(path)
        except pk.PrunekitError:
            counts["refused"] += 1
        else:
            assert found == expected, number
            counts["read as it was"] += 1
    print(f"{name}: {FLIPS} flips and {CUTS} cuts: {counts}")
    assert counts["refused"] > CUTS
